"""A supervisor that is stopped: said once, its runs wait for it, new ones begin elsewhere."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import structlog

from agent_core import AgentHandle, Execution, Instant
from agent_core.testing.clock import TurnedClock
from agent_core.testing.executor import appears, begin, end, make_launch
from agent_core_plugins.subprocess_executor import SubprocessExecutor
from agent_core_plugins.subprocess_executor.house import ASK_AGAIN
from agent_core_plugins.subprocess_executor.silence import LOOK, attend
from tests.agent_core_plugins.subprocess_executor.conftest import supervisors

Make = Callable[..., SubprocessExecutor]
WAITS = "echo began >began; read line <go; exit 5"


class Bench:
    """An executor that is served by turned time, and its supervisor, which can be stopped."""

    def __init__(self, executor: SubprocessExecutor, clock: TurnedClock, runtime: Path) -> None:
        self.executor = executor
        self.clock = clock
        self.runtime = runtime

    async def begin(self, directory: Path, text: str) -> tuple[Execution, Path]:
        launch = make_launch(directory, "/bin/sh", "-c", text)
        os.mkfifo(Path(launch.scratch) / "go")
        return await begin(self.executor, launch), Path(launch.scratch)

    async def look(self) -> None:
        """Let the watch look twice: it asks, and notices that nothing came."""
        for _ in range(2):
            await self.clock.until_sleeping()
            await self.clock.advance(LOOK)

    async def until_silent(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            while self.executor.supervisor_pid == pid:
                await self.look()
                await asyncio.sleep(0.01)

    async def until_silent_without_watch(self, pid: int) -> None:
        """As `until_silent`, of an executor that is not served."""
        watching = asyncio.create_task(
            attend(self.executor._house, self.clock, structlog.get_logger())
        )
        try:
            await self.until_silent(pid)
        finally:
            watching.cancel()
            await asyncio.wait({watching})


class Records:
    """As much of an agent as `serve` asks: it has no tasks."""

    async def tasks(self, *_: object, **__: object) -> list[object]:
        return []


@pytest.fixture
async def bench(make: Make, runtime: Path) -> AsyncIterator[Bench]:
    clock = TurnedClock()
    executor = make(clock=clock)
    serving = asyncio.create_task(executor.serve(cast("AgentHandle", cast("Any", Records()))))
    async with asyncio.timeout(20):
        while executor.supervisor_pid is None:
            await asyncio.sleep(0.01)
    with structlog.testing.capture_logs():
        yield Bench(executor, clock, runtime)
    for pid in supervisors(runtime):
        os.kill(pid, signal.SIGCONT)
    serving.cancel()
    await asyncio.wait({serving})


async def go(scratch: Path) -> None:
    await asyncio.to_thread((scratch / "go").write_text, "\n")


async def test_new_runs_begin_elsewhere_and_the_old_one_is_told_when_it_answers_again(
    bench: Bench, tmp_path: Path
) -> None:
    first, scratch = await bench.begin(tmp_path, WAITS)
    stopped = bench.executor.supervisor_pid
    assert stopped is not None
    await appears(scratch / "began")
    await bench.until_silent(stopped)
    ending = asyncio.create_task(end(first))
    await go(scratch)
    second, other = await bench.begin(tmp_path, WAITS)
    assert bench.executor.supervisor_pid not in (stopped, None)
    await go(other)
    assert (await end(second)).exit_code == 5
    await bench.look()
    assert not ending.done()  # ended, and nobody can know how: it is waited for
    os.kill(stopped, signal.SIGCONT)
    assert (await asyncio.wait_for(ending, 20)).exit_code == 5


async def test_it_is_said_once_when_it_falls_silent_and_once_when_it_answers(
    bench: Bench, tmp_path: Path
) -> None:
    first, scratch = await bench.begin(tmp_path, WAITS)
    stopped = bench.executor.supervisor_pid
    assert stopped is not None
    with structlog.testing.capture_logs() as said:
        await bench.until_silent(stopped)
        await bench.look()
        await bench.look()
        os.kill(stopped, signal.SIGCONT)
        async with asyncio.timeout(20):
            while not any("answers again" in line["event"] for line in said):
                await bench.clock.advance(LOOK)
                await asyncio.sleep(0.01)
    events = [line["event"] for line in said]
    assert sum("does not answer" in event for event in events) == 1
    assert sum("answers again" in event for event in events) == 1
    await go(scratch)
    assert (await end(first)).exit_code == 5


async def test_its_runs_can_still_be_ended(bench: Bench, tmp_path: Path) -> None:
    first, scratch = await bench.begin(tmp_path, "sleep 1000 & echo >began; wait")
    stopped = bench.executor.supervisor_pid
    assert stopped is not None
    await appears(scratch / "began")
    await bench.until_silent(stopped)
    assert await first.signal(signal.SIGKILL)
    os.kill(stopped, signal.SIGCONT)
    assert (await asyncio.wait_for(end(first), 20)).signal == "SIGKILL"


async def test_a_signal_that_waits_for_its_answer_is_sent_by_the_agent_itself(
    bench: Bench, tmp_path: Path
) -> None:
    first, scratch = await bench.begin(
        tmp_path, "trap 'echo >termed' TERM; echo >began; read x <go"
    )
    stopped = bench.executor.supervisor_pid
    assert stopped is not None
    await appears(scratch / "began")
    os.kill(stopped, signal.SIGSTOP)
    signalling = asyncio.create_task(first.signal(signal.SIGTERM))
    await bench.until_silent(stopped)
    assert await asyncio.wait_for(signalling, 20)
    await appears(scratch / "termed")
    os.kill(stopped, signal.SIGCONT)
    await first.signal(signal.SIGKILL)
    await asyncio.wait_for(end(first), 20)


async def test_an_agent_that_finds_one_silent_waits_for_it_alone_and_says_so_once(
    make: Make, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two supervisors, one of them stopped: the other's runs are found, and new ones begin."""
    monkeypatch.setattr("agent_core_plugins.subprocess_executor.link.HELLO_TIMEOUT", 0.1)
    clock = TurnedClock()
    first = make(clock=clock)
    now = Instant.now(clock)
    launches = [make_launch(tmp_path, "/bin/sh", "-c", WAITS, stored_at=now) for _ in range(2)]
    for launch in launches:
        os.mkfifo(Path(launch.scratch) / "go")
    await begin(first, launches[0])
    stopped = first.supervisor_pid
    assert stopped is not None
    await Bench(first, clock, runtime).until_silent_without_watch(stopped)
    await begin(first, launches[1])
    first.close()
    second = make(clock=clock)
    with structlog.testing.capture_logs() as said:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await second.reattach(launches[0], True)
        other = await second.reattach(launches[1], True)
        assert isinstance(other, Execution)
        new = await begin(second, make_launch(tmp_path, "/bin/true"))
        assert (await end(new)).success
        await go(Path(launches[1].scratch))
        assert (await end(other)).exit_code == 5
        os.kill(stopped, signal.SIGCONT)
        await clock.advance(ASK_AGAIN)
        found = await second.reattach(launches[0], True)
    assert isinstance(found, Execution)
    await go(Path(launches[0].scratch))
    assert (await end(found)).exit_code == 5
    events = [line["event"] for line in said]
    assert sum("does not answer" in event for event in events) == 1
    assert sum("answers again" in event for event in events) == 1
