"""Urgent work where no slot is free: who makes room, and that nobody who does is lost."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from agent_core import endings
from agent_core.lifecycle import Status
from agent_core.models import Reason, Task
from agent_core.testing.executors import HandRun
from tests.agent_core.core import Core, task, turns, until, within

URGENT = task("urgent", priority=1)


async def running(core: Core, *given: Task) -> list[HandRun]:
    """These run, each in its slot; they began one after another."""
    runs = []
    for each in given:
        await core.bring(each)
        runs.append(await core.executor.next_run())
        await core.until_status(each, "running")
    return runs


async def settle(core: Core) -> None:
    for _ in range(5):
        await turns()
        await core.store.next_due(0.0)
    await turns()


@pytest.fixture
async def full(core: Core) -> tuple[Core, HandRun, HandRun]:
    """Two slots, both taken: the one by work of priority 9, the other, later, of priority 4."""
    await core.start()
    low, middle = await running(core, task("low", priority=9), task("middle", priority=4))
    return core, low, middle


async def test_the_least_urgent_makes_room_and_runs_again_as_a_new_run(full: Any) -> None:
    core, low, middle = full
    await core.bring(URGENT)
    urgent = await core.executor.next_run()
    assert urgent.launch.key == URGENT.key
    assert (low.signals, middle.signals) == ([signal.SIGTERM], [])
    waits = await core.get(task("low"))
    assert (waits.status, waits.run_no, waits.retry_count) == (Status.PENDING, 1, 0)
    [ended] = await core.store.runs(task("low").key)
    assert (ended.outcome.reason, ended.outcome.signal) == (Reason.PREEMPTED, "SIGTERM")
    assert "made room for a more urgent task" in ended.outcome.error
    urgent.end()
    again = await core.executor.next_run()
    assert (again.launch.key, again.launch.run_no) == (task("low").key, 2)
    again.end()
    await core.until_status(task("low"), "completed")
    assert [kind for kind, name in await core.events() if name == "low"] == [
        "start",
        "run",
        "start",
        "complete",
    ]


async def test_of_two_equals_the_one_that_began_last_makes_room(core: Core) -> None:
    await core.start()
    first, last = await running(core, task("t1"), task("t2"))
    await core.bring(URGENT)
    assert (await core.executor.next_run()).launch.key == URGENT.key
    assert (first.signals, last.signals) == ([], [signal.SIGTERM])


async def test_a_difference_of_two_preempts_nothing(core: Core) -> None:
    await core.start()
    runs = await running(core, task("t1", priority=5), task("t2", priority=5))
    await core.bring(task("a bit more urgent", priority=3))
    await settle(core)
    assert [run.signals for run in runs] == [[], []]


async def test_nothing_is_preempted_while_a_slot_is_free(core: Core) -> None:
    await core.start()
    [low] = await running(core, task("low", priority=10))
    [urgent] = await running(core, URGENT)
    await settle(core)
    assert (low.signals, urgent.signals) == ([], [])


async def test_who_does_not_hear_is_killed_after_its_grace(full: Any) -> None:
    core, low, _ = full
    low.deaf = True
    await core.bring(URGENT)
    assert (await core.executor.next_run()).launch.key == URGENT.key
    assert low.signals == [signal.SIGTERM, signal.SIGKILL]
    await core.until_status(task("low"), "pending", "assigned")


async def test_no_more_make_room_than_are_needed(core: Core) -> None:
    await core.start()
    runs = await running(core, task("t1", priority=9), task("t2", priority=9))
    for run in runs:
        run.deaf, run.grace = True, 3600.0
    await core.bring(URGENT)
    await runs[1].signalled()
    await core.bring(task("not urgent", priority=7), task("t4", priority=8))
    await settle(core)
    assert [run.signals for run in runs] == [[], [signal.SIGTERM]]
    await core.bring(task("as urgent", priority=1))
    await runs[0].signalled()
    await settle(core)
    assert [run.signals for run in runs] == [[signal.SIGTERM], [signal.SIGTERM]]
    for run in runs:
        run.end(143)
    names = {(await core.executor.next_run()).launch.key.task_id for _ in runs}
    assert names == {"urgent", "as urgent"}


async def test_one_that_ends_already_is_room_enough(full: Any) -> None:
    core, low, middle = full
    middle.deaf, middle.grace = True, 3600.0
    await core.worker.cancel(task("middle").key, code=1, reason="by Ada")
    await middle.signalled()
    await core.bring(URGENT)
    await settle(core)
    assert low.signals == []
    middle.end(143)
    assert (await core.executor.next_run()).launch.key == URGENT.key
    await core.until_status(task("middle"), "cancelled")


async def test_one_whose_time_is_over_is_room_enough_too(core: Core) -> None:
    await core.start()
    [low] = await running(core, task("low", priority=9))
    late = task("late", priority=9, timeout=0.2)
    await core.bring(late)
    run = await core.executor.next_run()
    run.deaf, run.grace = True, 3600.0
    await run.signalled()
    await core.bring(URGENT)
    await settle(core)
    assert low.signals == []
    run.end(124)
    assert (await core.executor.next_run()).launch.key == URGENT.key
    await core.until_status(late, "failed")


async def test_one_that_is_cancelled_while_it_makes_room_does_not_come_back(full: Any) -> None:
    core, low, _ = full
    low.deaf, low.grace = True, 3600.0
    await core.bring(URGENT)
    await low.signalled()
    assert await core.worker.cancel(task("low").key, code=7, reason="by Ada")
    low.end(143)
    cancelled = await core.until_status(task("low"), "cancelled", "completed", "failed")
    assert cancelled.outcome
    assert (cancelled.outcome.reason, cancelled.outcome.error) == (Reason.CANCELLED, "by Ada")


async def test_its_own_end_counts_for_one_that_was_to_make_room(full: Any) -> None:
    core, low, _ = full
    low.end(0)
    low.signals.clear()
    core.worker.slots.stop(task("low").key, endings.preempted())
    done = await core.until_status(task("low"), "completed", "pending", "cancelled")
    assert done.status is Status.COMPLETED


async def test_one_that_has_not_begun_yet_waits_again_and_burns_no_run(tmp_path: Path) -> None:
    core = await Core.open(tmp_path, max_workers=1)
    await core.start()
    gate = core.store.hold("save_all")  # its start is stored, and nobody has heard of that yet
    await core.bring(task("low", priority=9))
    await within(core.store.entered["save_all"].wait())
    await core.bring(URGENT)
    await settle(core)
    gate.set()
    assert (await core.executor.next_run()).launch.key == URGENT.key
    waits = await core.get(task("low"))
    assert (waits.status, waits.run_no) == (Status.PENDING, 0)
    assert len(core.executor.runs) == 1
    await core.close()


async def test_one_that_fails_by_itself_meanwhile_keeps_its_retry(full: Any) -> None:
    """The word came when the run had ended: it is a retry, and not a cancel."""
    core, _, _ = full
    fails = task("fails", priority=9, max_retries=1, retry_delay=3600.0)
    await core.add(fails)
    runner = core.runner(fails)
    job = asyncio.create_task(runner.run())
    run = await core.executor.next_run()
    held = core.store.hold("save_all", before=True)
    run.end(1)
    await within(core.store.entered["save_all"].wait())
    runner.stop(endings.preempted())
    held.set()
    await within(job)
    assert (runner.task.status, runner.task.retry_count) == (Status.PENDING, 1)


async def test_after_a_kill_between_the_end_and_the_return_it_waits_again(full: Any) -> None:
    core, _, _ = full
    await core.store.save(await core.get(task("low")), {"status": Status.PREEMPTED})
    core = await core.again()
    await core.start()
    again = await core.executor.next_run()
    assert (again.launch.key, again.launch.run_no) == (task("low").key, 2)
    await until(lambda: len(core.executor.runs) == 3)
    await core.close()
