"""Starts that an executor has before there is a slot for them: who is handed over and who not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent_core.api.resources import Resources
from agent_core.clock import Instant, SystemClock
from agent_core.errors import StoreFull
from agent_core.inventory import Inventory
from agent_core.models import Lease, Reason, Task
from agent_core.testing.clock import TurnedClock
from agent_core.testing.executors import HandRun, HeirExecutor
from agent_core.waiting import Aside
from tests.agent_core.core import Core, task, turns, until, within

RUNNING = task("r1", created_at=1.0)
FOLLOWING = [task(f"f{n}", created_at=10.0 + n) for n in range(4)]
URGENT = task("urgent", priority=3, created_at=90.0)


class Heir(HeirExecutor):
    async def holds(self, *tasks: Task) -> None:
        """Exactly these are handed over, in this order."""
        wanted = [each.key for each in tasks]
        await until(lambda: [start.launch.key for start in self.handed] == wanted)


@pytest.fixture
async def heir() -> Heir:
    return Heir()


@pytest.fixture
async def busy(tmp_path: Path, heir: Heir) -> AsyncIterator[Core]:
    """One slot, which is taken, and two starts ahead."""
    core = await Core.open(tmp_path, max_workers=1, ahead=2, hand=heir)
    await core.start()
    await core.bring(RUNNING)
    await heir.next_run()
    await core.until_status(RUNNING, "running")
    yield core
    await core.close()


def first(heir: Heir) -> HandRun:
    return next(iter(heir.runs.values()))


async def one_is_recalled(busy: Core, heir: Heir) -> None:
    """It was handed over, and something more urgent has come; the recall waits for `recalls`."""
    await busy.bring(*FOLLOWING[:1])
    await heir.holds(*FOLLOWING[:1])
    heir.recalls = asyncio.Event()
    await busy.bring(URGENT)
    await busy.until_status(URGENT, "assigned")


async def test_the_next_begin_by_themselves_in_order_and_each_takes_the_slot_that_was_left(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING)
    run = first(heir)
    for n, each in enumerate(FOLLOWING):
        await heir.holds(*FOLLOWING[n : n + 2])
        run.end()
        run = await heir.passes_on()
        assert run.launch.key == each.key
        stored = await busy.until_status(each, "running")
        assert stored.start_id == run.launch.start_id
        assert [one.task.key for one in busy.bench.machine.running] == [each.key]
    run.end()
    assert (await busy.until_status(FOLLOWING[-1], "completed")).run_no == 1
    await busy.until_idle()
    assert await busy.rooms() == []
    assert len(heir.runs) == 5


async def test_what_begins_before_the_end_before_it_is_heard_of_has_its_slot_too(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    await heir.passes_on()
    await busy.until_status(FOLLOWING[0], "running")
    assert busy.bench.machine.free_slots == 0
    first(heir).end()
    await busy.until_status(RUNNING, "completed")
    assert [one.task.key for one in busy.bench.machine.running] == [FOLLOWING[0].key]
    await heir.holds(FOLLOWING[1])


async def test_a_slot_that_nobody_passed_on_is_given_to_the_first(busy: Core, heir: Heir) -> None:
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    first(heir).end()
    assert (await heir.next_run()).launch.key == FOLLOWING[0].key
    await heir.holds(FOLLOWING[1])


async def test_something_more_urgent_is_put_before_all_that_was_handed_over(
    busy: Core, heir: Heir
) -> None:
    await one_is_recalled(busy, heir)
    await turns()
    heir.recalls.set()
    await heir.holds(URGENT, FOLLOWING[0])


async def test_one_that_begins_while_it_is_recalled_runs_once(busy: Core, heir: Heir) -> None:
    await one_is_recalled(busy, heir)
    run = await heir.passes_on()
    first(heir).end()
    heir.recalls.set()
    await busy.until_status(FOLLOWING[0], "running")
    await heir.holds(URGENT)
    run.end()
    assert (await busy.until_status(FOLLOWING[0], "completed")).run_no == 1
    assert (await heir.next_run()).launch.key == URGENT.key
    assert len(heir.runs) == 3


async def test_nobody_is_handed_over_before_one_that_is_more_urgent_and_asks_for_more_than_a_slot(
    busy: Core, heir: Heir
) -> None:
    busy.bench.machine.learn(Inventory(cpu_cores=4))
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    asking = task("asking", priority=RUNNING.priority - 1, resources=Resources(cpus=1.0))
    await busy.bring(asking)
    await heir.holds()
    first(heir).end()
    assert (await heir.next_run()).launch.key == asking.key
    await heir.holds(*FOLLOWING[:2])


async def test_one_that_is_cancelled_is_taken_back(busy: Core, heir: Heir) -> None:
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    assert await busy.worker.cancel(FOLLOWING[0].key, code=7, reason="by Ada")
    cancelled = await busy.until_status(FOLLOWING[0], "cancelled")
    assert cancelled.run_no == 0
    await heir.holds(FOLLOWING[1])


async def test_one_that_began_when_it_was_cancelled_is_ended(busy: Core, heir: Heir) -> None:
    await busy.bring(*FOLLOWING[:1])
    await heir.holds(*FOLLOWING[:1])
    heir.recalls = asyncio.Event()
    assert await busy.worker.cancel(FOLLOWING[0].key, code=7, reason="by Ada")
    run = await heir.passes_on()
    first(heir).end()
    heir.recalls.set()
    assert await run.signalled()
    cancelled = await busy.until_status(FOLLOWING[0], "cancelled")
    assert cancelled.outcome
    assert (cancelled.outcome.reason, cancelled.run_no) == (Reason.CANCELLED, 1)
    await busy.until_idle()
    assert busy.bench.machine.free_slots == 1


async def test_who_leaves_takes_them_back_and_leaves_what_began_to_run_on(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    heir.recalls = asyncio.Event()
    leaving = asyncio.create_task(busy.worker.leave())
    await turns()
    await heir.passes_on()
    heir.recalls.set()
    await within(leaving)
    assert heir.handed == []
    found = [(await busy.get(each)).status.value for each in FOLLOWING[:2]]
    assert found == ["running", "pending"]


async def test_none_may_begin_after_its_lease(busy: Core, heir: Heir) -> None:
    lease = Lease(until=Instant.now(SystemClock()).plus(60))
    await busy.bring(task("lent", lease=lease), FOLLOWING[0])
    await until(lambda: len(heir.handed) == 2)
    lent, free = heir.handed
    assert lent.until == pytest.approx(lease.until.boottime, abs=1.0)
    assert free.until > lent.until + 1e6


async def test_what_was_cancelled_while_it_was_handed_over_is_not_asked_back_for_another(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING[:1])
    await heir.holds(*FOLLOWING[:1])
    assert await busy.worker.cancel(FOLLOWING[0].key, code=7, reason="by Ada")
    await busy.until_status(FOLLOWING[0], "cancelled")
    await busy.bring(URGENT)
    await heir.holds(URGENT)
    first(heir).end()
    assert (await heir.passes_on()).launch.key == URGENT.key


async def test_what_goes_back_to_its_source_was_taken_back_and_may_come_again(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    returns = busy.worker.returns
    returns.heard("server", takes_back=True)
    busy.store.fail("save_all", *[StoreFull("no room")] * 3)
    returns._give_back(returns._in_vain())
    for each in FOLLOWING[:2]:
        ended = await busy.until_status(each, "cancelled")
        assert ended.outcome
        assert ended.outcome.reason is Reason.RELEASED
    await heir.holds()
    again = replace(FOLLOWING[0], attempt_id="a2")
    await busy.bring(again)
    await heir.holds(again)
    await busy.bring(URGENT)
    await heir.holds(URGENT, again)


async def test_those_whose_executor_has_them_no_more_are_handed_over_anew_in_their_order(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING)
    await heir.holds(*FOLLOWING[:2])
    heir.loses_all()
    await heir.holds(*FOLLOWING[:2])
    heir.handed[0].lose()
    await heir.holds(*FOLLOWING[:2])
    first(heir).end()
    assert (await heir.passes_on()).launch.key == FOLLOWING[0].key


async def test_one_that_began_before_its_executor_lost_it_is_followed_at_once(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    begun, other = heir.handed
    await begun.begin()  # and this is heard of by nobody
    heir.loses_all()
    await busy.until_status(FOLLOWING[0], "running")
    first(heir).end()
    await busy.until_status(RUNNING, "completed")
    await heir.holds(FOLLOWING[1])
    assert [one.task.key for one in busy.bench.machine.running] == [FOLLOWING[0].key]
    assert other.run is None


async def test_a_renewed_one_is_handed_over_anew_with_those_behind_it_and_its_later_end(
    busy: Core, heir: Heir
) -> None:
    clock = SystemClock()
    lent = task("lent", created_at=9.0, lease=Lease(until=Instant.now(clock).plus(60)))
    await busy.bring(lent, FOLLOWING[0])
    await heir.holds(lent, FOLLOWING[0])
    before = heir.handed[0].until
    busy.worker.renewed(lent.key, Lease(until=Instant.now(clock).plus(600)))
    await until(lambda: bool(heir.handed) and heir.handed[0].until > before + 300)
    await heir.holds(lent, FOLLOWING[0])


async def test_one_whose_lease_is_over_is_not_handed_over_and_stands_in_nobodys_way(
    tmp_path: Path, heir: Heir
) -> None:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock, max_workers=1, ahead=3, hand=heir)
    await core.start()
    await core.bring(RUNNING)
    run = await heir.next_run()
    lent = task("lent", created_at=9.0, lease=Lease(until=Instant.now(clock).plus(5)))
    await core.bring(lent, FOLLOWING[0])
    await heir.holds(lent, FOLLOWING[0])
    await clock.advance(6)
    heir.loses_all()
    await heir.holds(FOLLOWING[0])
    core.worker.renewed(lent.key, Lease(until=Instant.now(clock).plus(60)))
    run.end()
    assert (await heir.next_run()).launch.key == lent.key
    await core.close()


async def test_a_newer_attempt_neither_follows_nor_begins_while_the_older_may_have_begun(
    tmp_path: Path, heir: Heir
) -> None:
    core = await Core.open(tmp_path, max_workers=2, ahead=2, hand=heir)
    await core.start()
    await core.bring(RUNNING, task("r2", created_at=2.0))
    runs = [await heir.next_run() for _ in range(2)]
    older = FOLLOWING[0]
    await core.bring(older)
    await heir.holds(older)
    (start,) = heir.handed
    heir.recalls = asyncio.Event()
    newer = replace(older, attempt_id="a2")
    await core.bring(newer)
    assert heir.heir() is start
    await start.begin()  # where the first has ended; on its way to us
    runs[1].end()  # told before it
    await core.until_status(task("r2"), "completed")
    await until(lambda: core.worker.waiting.parked(Aside.OLDER) != [])
    assert heir.handed == []
    start.tell()
    runs[0].end()
    heir.recalls.set()
    await core.until_status(older, "cancelled")
    await core.until_status(newer, "running")
    assert len(heir.runs) == 4
    await core.close()


async def test_a_recall_that_fails_is_asked_again_until_its_executor_can_tell(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    heir.recall_errors.extend(OSError("cannot tell") for _ in range(3))
    assert await busy.worker.cancel(FOLLOWING[0].key, code=7, reason="by Ada")
    await busy.until_status(FOLLOWING[0], "cancelled")
    await heir.holds(FOLLOWING[1])
    heir.recall_errors.extend(OSError("cannot tell") for _ in range(3))
    await busy.bring(URGENT)
    await heir.holds(URGENT, FOLLOWING[1])


async def test_after_a_kill_what_was_handed_over_waits_again_and_is_handed_over_anew(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    old = {start.launch.start_id for start in heir.handed}
    heir.handed.clear()  # an executor lets go of them when the agent is gone
    core = await busy.again()
    await core.start()
    await heir.holds(*FOLLOWING[:2])
    assert old.isdisjoint(start.launch.start_id for start in heir.handed)
    first(heir).end()
    assert (await heir.passes_on()).launch.key == FOLLOWING[0].key
    await core.kill()


async def test_what_cannot_be_taken_is_given_its_slot_by_the_agent(busy: Core, heir: Heir) -> None:
    heir.takes_ahead = False
    await busy.bring(*FOLLOWING[:2])
    for each in FOLLOWING[:2]:
        await busy.until_status(each, "assigned")
    first(heir).end()
    assert (await heir.next_run()).launch.key == FOLLOWING[0].key
    assert heir.handed == []


async def test_without_depth_nothing_is_handed_over(tmp_path: Path, heir: Heir) -> None:
    core = await Core.open(tmp_path, max_workers=1, ahead=0, hand=heir)
    await core.start()
    await core.bring(RUNNING, *FOLLOWING)
    for each in (RUNNING, *FOLLOWING):
        run = await heir.next_run()
        assert run.launch.key == each.key
        assert heir.handed == []
        run.end()
    await core.close()


async def test_one_more_urgent_that_comes_while_others_are_made_ready_is_put_before_them(
    busy: Core, heir: Heir
) -> None:
    gate = busy.store.hold("save_all", before=True)
    await busy.bring(*FOLLOWING[:2])
    await within(busy.store.entered["save_all"].wait())
    await busy.bring(URGENT)
    await turns()
    gate.set()
    await heir.holds(URGENT, FOLLOWING[0])
    await busy.until_status(FOLLOWING[1], "pending")


async def test_one_more_urgent_that_comes_while_others_are_taken_back_is_put_before_them(
    busy: Core, heir: Heir
) -> None:
    await busy.bring(*FOLLOWING[:2])
    await heir.holds(*FOLLOWING[:2])
    heir.recalls = asyncio.Event()
    heir.loses_all()
    await busy.bring(URGENT)
    await turns()
    heir.recalls.set()
    await heir.holds(URGENT, FOLLOWING[0])
