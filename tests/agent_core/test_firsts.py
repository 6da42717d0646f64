"""Starts that are stored together with their tasks: what begins at once costs one transaction."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent_core.api.resources import Resources
from agent_core.errors import StoreFull
from agent_core.lifecycle import Status
from agent_core.models import Task, Verdict
from agent_core.testing.executors import HandExecutor
from tests.agent_core.core import Core, task, turns, within


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    made = await Core.open(tmp_path, ahead=2)
    await made.start()
    yield made
    await made.close()


async def bring(core: Core, *tasks: Task) -> list[Task]:
    """As a claim does."""
    fresh = await core.worker.firsts.store(tasks, {})
    await core.worker.admit(fresh)
    return fresh


def stored_starts(core: Core) -> list[int]:
    """How many of the tasks of each `add` had a start."""
    return [
        sum(bool(each.start_id) for each in given[0])
        for call, given in zip(core.store.calls, core.store.given, strict=True)
        if call == "add"
    ]


async def test_what_finds_a_slot_is_stored_with_its_start_and_begins(core: Core) -> None:
    await bring(core, task("t1"), task("t2"), task("t3"))
    runs = [await core.executor.next_run() for _ in range(2)]
    assert stored_starts(core) == [2]
    for run, name in zip(runs, ("t1", "t2"), strict=True):
        found = await core.until_status(task(name), "running")
        assert run.launch.key == found.key
        assert (run.launch.start_id, found.executor) == (found.start_id, "hand")
    runs[0].end()
    third = await core.executor.next_run()
    assert third.launch.key == task("t3").key
    assert (await core.until_status(task("t1"), "completed")).outcome is not None


async def test_the_most_urgent_of_them_get_the_slots(core: Core) -> None:
    await bring(core, *(task(f"t{n}", priority=9 - n) for n in range(4)))
    begun = {(await core.executor.next_run()).launch.key.task_id for _ in range(2)}
    assert begun == {"t3", "t2"}


async def test_a_slot_for_which_somebody_waits_is_nobody_elses(core: Core) -> None:
    await bring(core, task("t1"))
    await core.executor.next_run()
    core.worker.waiting.add(task("waits"))
    await core.worker.firsts.store([task("t2")], {})
    assert stored_starts(core) == [1, 0]
    core.worker.waiting.remove(task("waits").key)


@pytest.mark.parametrize(
    "given",
    [
        task("t1", resources=Resources(cpus=1)),
        task("t1", unreadable="no command"),
        task("t1", wanted_executor="nobody"),
    ],
)
async def test_what_is_chosen_for_or_refused_later_is_stored_as_it_came(
    core: Core, given: Task
) -> None:
    await core.worker.firsts.store([given], {})
    assert stored_starts(core) == [0]
    assert (await core.get(given)).status is Status.PENDING


async def test_what_a_site_refuses_never_has_a_start(core: Core) -> None:
    core.judge.verdicts["t1"] = Verdict.deny("not here")
    await bring(core, task("t1"))
    ended = await core.until_status(task("t1"), "failed")
    assert stored_starts(core) == [0]
    assert ended.outcome is not None
    assert "not here" in ended.outcome.error


async def test_only_an_executor_that_can_tell_is_given_a_start_so_early(tmp_path: Path) -> None:
    class Forgetful(HandExecutor):
        reattach = None  # type: ignore[assignment]

    core = await Core.open(tmp_path, ahead=2, hand=Forgetful())
    await core.start()
    await bring(core, task("t1"))
    (await core.executor.next_run()).end()
    await core.until_status(task("t1"), "completed")
    assert stored_starts(core) == [0]
    await core.close()


async def test_without_starts_ahead_there_are_none_with_the_tasks(tmp_path: Path) -> None:
    core = await Core.open(tmp_path, ahead=0)
    await core.start()
    await bring(core, task("t1"))
    await core.executor.next_run()
    assert stored_starts(core) == [0]
    await core.close()


async def test_a_task_that_is_stored_already_begins_nothing_anew(core: Core) -> None:
    await bring(core, task("t1"))
    run = await core.executor.next_run()
    assert await bring(core, task("t1"), task("t2")) == [task("t2")]
    other = await core.executor.next_run()
    assert other.launch.key == task("t2").key
    run.end()
    other.end()
    await core.until_status(task("t1"), "completed")
    await turns()
    assert len(core.executor.runs) == 2


async def test_what_a_full_disk_refuses_comes_again_and_begins_once(core: Core) -> None:
    core.store.fail("add", StoreFull("full"))
    with pytest.raises(StoreFull):
        await core.worker.firsts.store([task("t1")], {})
    await bring(core, task("t1"))
    assert (await core.executor.next_run()).launch.key == task("t1").key
    assert stored_starts(core) == [1, 1]


async def test_a_cancel_that_comes_while_both_are_stored_lets_nothing_begin(core: Core) -> None:
    held = core.store.hold("add")
    bringing = asyncio.create_task(bring(core, task("t1")))
    await within(core.store.entered["add"].wait())
    cancelling = asyncio.create_task(core.worker.cancel(task("t1").key, code=1, reason="by Ada"))
    await turns()
    assert not cancelling.done(), "it is in the store, and nobody knows it yet"
    held.set()
    await within(bringing)
    assert await within(cancelling)
    ended = await core.until_status(task("t1"), "cancelled")
    assert ended.run_no == 0
    await bring(core, task("t2"))
    assert (await core.executor.next_run()).launch.key == task("t2").key


async def test_after_a_kill_in_between_it_waits_again_and_runs_once(core: Core) -> None:
    core.store.hold("add")
    bringing = asyncio.create_task(bring(core, task("t1")))
    await within(core.store.entered["add"].wait())
    assert (await core.get(task("t1"))).status is Status.ASSIGNED
    bringing.cancel()
    await asyncio.wait({bringing})
    core = await (await core.again()).start()
    run = await core.executor.next_run()
    assert run.launch.key == task("t1").key
    run.end()
    ended = await core.until_status(task("t1"), "completed")
    assert ended.run_no == 1


async def test_an_agent_that_leaves_meanwhile_takes_the_start_back(core: Core) -> None:
    given = task("t1", source="work")
    held = core.store.hold("add")
    bringing = asyncio.create_task(bring(core, given))
    await within(core.store.entered["add"].wait())
    await within(core.worker.leave())
    held.set()
    await within(bringing)
    assert (await core.get(given)).status is Status.PENDING
    await within(core.worker.give_back())
    assert await core.events() == [("release", "t1")]


async def test_a_newer_attempt_waits_until_the_older_is_gone(core: Core) -> None:
    await bring(core, task("t1"))
    older = await core.executor.next_run()
    newer = replace(task("t1"), attempt_id="newer")
    await bring(core, newer)
    assert stored_starts(core) == [1, 0]
    await older.signalled()
    run = await core.executor.next_run()
    assert run.launch.key == newer.key
    assert len(older.signals) == 1
