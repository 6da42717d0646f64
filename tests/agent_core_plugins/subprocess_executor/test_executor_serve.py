"""Beside the work: a supervisor at hand, and nothing left of what nobody will ask for."""

import asyncio
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from agent_core import AgentHandle, Instant, Key, NeverRan, Status, Task
from agent_core.clock import SystemClock
from agent_core.testing.executor import begin, end, make_launch
from agent_core_plugins.subprocess_executor import SubprocessExecutor
from tests.agent_core_plugins.subprocess_executor.conftest import end_process, supervisors

Make = Callable[..., SubprocessExecutor]


class Records:
    """As much of an agent as `serve` asks: its tasks."""

    def __init__(self, *tasks: Task) -> None:
        self._tasks = tasks

    async def tasks(
        self, statuses: Collection[Status] = (), *, limit: int = 1000, after: Key | None = None
    ) -> list[Task]:
        found = [task for task in self._tasks if task.status in statuses]
        start = 0 if after is None else [task.key for task in found].index(after) + 1
        return found[start : start + limit]


def serve(executor: SubprocessExecutor, *tasks: Task) -> "asyncio.Task[None]":
    agent = cast("AgentHandle", cast("Any", Records(*tasks)))
    return asyncio.create_task(executor.serve(agent))


async def stop(serving: "asyncio.Task[None]") -> None:
    serving.cancel()
    await asyncio.wait({serving})


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_supervisor_is_at_hand_before_the_first_task_and_again_after_it_was_killed(
    make: Make, runtime: Path
) -> None:
    serving = serve(make())
    await until(lambda: supervisors(runtime))
    (first,) = supervisors(runtime)
    end_process(first)
    await until(lambda: supervisors(runtime))
    assert supervisors(runtime) != [first]
    await stop(serving)


async def test_an_end_that_was_stored_before_the_agent_died_is_let_go_of(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    first = make()
    stored, wanted = (make_launch(tmp_path, "/bin/echo", "out") for _ in range(2))
    for launch in (stored, wanted):
        await (await begin(first, launch)).wait()  # and nobody forgets them
    first.close()
    output = tmp_path / "state" / "output"
    assert len(list(output.iterdir())) == 2
    task = Task(
        id="t",
        command="echo",
        status=Status.RUNNING,
        start_id=wanted.start_id,
        assigned_at=Instant.now(SystemClock()),
    )
    second = make()
    serving = serve(second, task, replace(task, id="u", status=Status.COMPLETED, start_id="other"))
    await until(lambda: len(list(output.iterdir())) == 1)
    found = await second.reattach(wanted, True)
    assert (await end(cast("Any", found))).stdout == b"out\n"
    await stop(serving)


async def test_a_dead_supervisors_directory_goes_at_the_next_start_and_not_before(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    first = make()
    launch = make_launch(tmp_path, "/bin/true")
    await (await begin(first, launch)).wait()
    (dead,) = list(runtime.iterdir())
    end_process(*supervisors(runtime))
    await end(await begin(first, make_launch(tmp_path, "/bin/true")))
    assert dead.exists()
    assert len(list(runtime.iterdir())) == 2
    first.close()

    task = Task(
        id="t",
        command="true",
        status=Status.RUNNING,
        start_id=launch.start_id,
        assigned_at=launch.stored_at,
    )
    serving = serve(make(), task)  # one of its runs is still asked for
    await until(lambda: supervisors(runtime))
    await asyncio.sleep(0.2)
    assert dead.exists()
    await stop(serving)

    serving = serve(make())
    await until(lambda: not dead.exists())
    listed = (tmp_path / "state" / "supervisors").read_text().split()
    assert listed == [place.name for place in runtime.iterdir()]
    assert len(listed) == 1
    await stop(serving)


async def test_a_supervisor_that_cannot_be_started_is_tried_again_in_the_same_directory(
    make: Make, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make()
    (place,) = runtime.iterdir()
    monkeypatch.setattr(sys, "_base_executable", "/no/such/python")
    launch = make_launch(tmp_path, "/bin/true")
    for _ in range(3):
        with pytest.raises(NeverRan, match="supervisor") as caught:
            await begin(executor, launch)
        assert caught.value.passing
    monkeypatch.undo()
    assert (await end(await begin(executor, launch))).success
    assert list(runtime.iterdir()) == [place]


async def test_an_agent_started_often_leaves_one_directory(make: Make, runtime: Path) -> None:
    for _ in range(5):
        make()
    assert len(list(runtime.iterdir())) == 1
