"""An executor of a few lines, made of ChildExecution, keeps the public contract."""

import asyncio
import signal
import subprocess
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_core import (
    ChildExecution,
    Execution,
    Launch,
    Lost,
    NeverRan,
    NeverStarted,
    PluginContext,
    RemoteGPUError,
    find_program,
    hookimpl,
    never_ran,
    signal_name,
)
from agent_core.child import Capture
from agent_core.testing.executor import ExecutorContract, appears, end, make_launch


class Plain:
    def __init__(self, cap: int) -> None:
        self._cap = cap

    @hookimpl
    def execute(self, launch: Launch) -> Awaitable[Execution]:
        return ChildExecution.start(launch, max_output_size=self._cap)


class TestChildExecution(ExecutorContract):
    @pytest.fixture
    def executor(self, context: PluginContext) -> Plain:
        return Plain(self.cap)


@pytest.fixture
def stranger() -> Iterator[Any]:
    """Starts a process that bears a start's marker and was started by somebody else."""
    made: list[subprocess.Popen[bytes]] = []

    def start(launch: Launch) -> None:
        made.append(subprocess.Popen(["/bin/sleep", "1000"], env=dict(launch.env)))

    yield start
    for process in made:
        process.kill()
        process.wait()


async def test_a_start_that_was_not_tried_here_is_left_to_other_executors(
    tmp_path: Path, stranger: Any
) -> None:
    launch = make_launch(tmp_path, "/bin/true")
    stranger(launch)
    assert isinstance(ChildExecution.recall(launch, running=False), NeverStarted)


async def test_a_start_that_was_tried_is_lost_but_not_while_it_lives(
    tmp_path: Path, stranger: Any
) -> None:
    launch = make_launch(tmp_path, "/bin/true")
    execution = await ChildExecution.start(launch)
    await execution.wait()
    assert isinstance(ChildExecution.recall(launch, running=False), Lost)
    stranger(launch)
    with pytest.raises(RemoteGPUError, match="has not ended"):
        ChildExecution.recall(launch, running=True)


async def test_what_was_forgotten_leaves_nothing_in_the_scratch_directory(tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "/bin/true")
    await end(await ChildExecution.start(launch))
    assert not list(Path(launch.scratch).iterdir())


async def test_a_start_that_never_ran_leaves_nothing_that_says_it_was_tried(
    tmp_path: Path,
) -> None:
    launch = make_launch(tmp_path, "/no/such/program")
    with pytest.raises(NeverRan):
        await ChildExecution.start(launch)
    with pytest.raises(NeverRan):
        await ChildExecution.start(launch, ["/bin/echo", "a\0b"])
    assert isinstance(ChildExecution.recall(launch, running=False), NeverStarted)


async def test_without_a_scratch_directory_it_may_start_later(tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "/bin/true", cwd="/")
    Path(launch.scratch).rmdir()
    with pytest.raises(NeverRan):
        await ChildExecution.start(launch)


async def test_a_term_goes_past_a_wrapper_and_a_kill_takes_both(tmp_path: Path) -> None:
    """As a wrapper stands a copy of the shell that would die of the TERM itself."""
    inner = "trap 'exit 7' TERM; echo >began; while :; do sleep 0.02; done"
    wrapper = ["/bin/bash", "-c", '/bin/dash -c "$0"; exit $?', inner]
    if not Path("/bin/dash").exists():
        pytest.skip("no second shell on this machine")
    for number, code in ((signal.SIGTERM, 7), (signal.SIGKILL, 137)):
        launch = make_launch(tmp_path, "/bin/sh")
        execution = await ChildExecution.start(launch, wrapper, wrapped=True)
        await appears(Path(launch.scratch) / "began")
        assert await execution.signal(number)
        assert (await end(execution)).exit_code == code


def test_a_program_is_found_by_the_tasks_own_path(tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    launch = make_launch(tmp_path, "tool")
    with pytest.raises(NeverRan, match="tool in PATH"):
        find_program(launch, {"PATH": "/usr/bin"})
    with pytest.raises(NeverRan, match="not executable"):
        find_program(launch, {"PATH": f"/usr/bin:{tmp_path}"})
    program.chmod(0o755)
    assert find_program(launch, {"PATH": f"/usr/bin:{tmp_path}"}) == str(program)


@pytest.mark.parametrize(
    ("number", "at", "words", "passing"),
    [
        (12, "exec", "now", True),
        (28, "journal", "now", True),
        (2, "fifo", "fifo", True),
        (2, "cwd", "/work-dir", False),
        (8, "exec", "first line", False),
        (7, "exec", "larger", False),
        (40, "exec", "cannot be started", False),
    ],
)
def test_each_reason_has_its_own_words(number: int, at: str, words: str, passing: bool) -> None:
    error = never_ran(number, argv=["prog"], cwd="/work-dir", at=at)
    assert words in str(error)
    assert error.passing is passing


def test_signals_have_names() -> None:
    assert signal_name(9) == "SIGKILL"
    assert signal_name(40) == "SIG40"


def test_a_capture_keeps_head_and_tail_however_it_is_filled() -> None:
    whole = bytes(range(256)) * 10
    for size in (1, 7, 100, 5000):
        capture = Capture(200)
        for start in range(0, len(whole), size):
            capture.add(whole[start : start + size])
        kept, dropped = capture.kept()
        marker = b"\n...[truncated, %d bytes dropped]\n" % (len(whole) - 200)
        assert (kept, dropped) == (whole[:100] + marker + whole[-100:], len(whole) - 200)
        assert capture.last(5) == whole[-5:]
        assert capture.last(0) == b""


async def test_a_reader_that_never_pauses_does_not_starve_the_loop(tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "/bin/sh", "-c", "yes")
    execution = await ChildExecution.start(launch, max_output_size=2048)
    async with asyncio.timeout(30):
        while len(await execution.tail("stdout", 4096)) < 2048:  # more than is kept was read
            await asyncio.sleep(0)
    assert await execution.signal(signal.SIGKILL)
    outcome = await end(execution)
    assert outcome.exit_code == 137
    assert outcome.dropped_stdout
