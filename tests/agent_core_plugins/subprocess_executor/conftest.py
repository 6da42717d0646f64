"""Executors with supervisors of their own, ended behind each test."""

import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import structlog

from agent_core import Clock, PluginContext
from agent_core.clock import SystemClock
from agent_core_plugins.subprocess_executor import SubprocessExecutor
from tests.end_to_end.records import eldest

Make = Callable[..., SubprocessExecutor]


def supervisors(runtime: Path) -> list[int]:
    """The supervisors that were started in a runtime directory."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"-S" in words and any(word.startswith(bytes(runtime)) for word in words):
                found.append(int(name))
    return eldest(found)


def end_process(pid: int) -> None:
    """Kill one, and return when it is gone (a zombie that nobody reaps counts as gone)."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + 10
    while lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A short directory on tmpfs where there is one; its supervisors end with the test."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="rg-", dir=shm))
    yield path
    for pid in supervisors(path):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        end_process(pid)
        for child in children:
            end_process(int(child))
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def make(tmp_path: Path, runtime: Path) -> AsyncIterator[Make]:
    """Builds the executor of one agent, as often as that agent is started again."""
    made: list[SubprocessExecutor] = []
    agent_id = f"agent-{uuid.uuid4().hex}"
    (tmp_path / "state").mkdir(mode=0o700)

    def build(*, clock: Clock | None = None, **settings: object) -> SubprocessExecutor:
        context = PluginContext(
            agent_id=agent_id,
            machine_id="machine-1",
            state_dir=tmp_path / "state",
            runtime_dir=runtime,
            max_workers=4,
            clock=clock or SystemClock(),
            log=structlog.get_logger("subprocess_executor"),
        )
        executor = SubprocessExecutor(SubprocessExecutor.Settings.model_validate(settings), context)
        made.append(executor)
        return executor

    yield build
    for executor in made:
        executor.close()
