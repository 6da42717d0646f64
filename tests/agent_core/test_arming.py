"""Starts that are stored before a slot is free for them, and what may happen to them meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from agent_core.api.resources import Resources
from agent_core.clock import Instant
from agent_core.execution import Execution
from agent_core.hookspecs import hookimpl
from agent_core.inventory import Inventory
from agent_core.lifecycle import Status
from agent_core.models import (
    Launch,
    Lease,
    Task,
)
from agent_core.testing.clock import TurnedClock
from agent_core.testing.executors import HandExecutor, HandRun
from tests.agent_core.core import Core, task, turns, until, within

RUNNING = task("r1", created_at=1.0)
FOLLOWING = [task(f"f{n}", created_at=10.0 + n) for n in range(5)]


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[Core]:
    """One slot, which is taken, and two starts ahead."""
    core = await Core.open(tmp_path, max_workers=1, ahead=2)
    await core.start()
    await core.bring(RUNNING)
    await core.executor.next_run()
    await core.until_status(RUNNING, "running")
    yield core
    await core.close()


async def statuses(core: Core, *tasks: Task) -> list[str]:
    return [(await core.get(each)).status.value for each in tasks]


async def armed(core: Core, *tasks: Task) -> None:
    for each in tasks:
        await core.until_status(each, "assigned")
        room = core.bench.runs_dir / (await core.get(each)).start_id
        await until(room.is_dir)


def current(core: Core) -> HandRun:
    return list(core.executor.runs.values())[-1]


async def test_the_next_starts_are_stored_while_the_slot_is_taken(busy: Core) -> None:
    await busy.bring(*FOLLOWING)
    await armed(busy, *FOLLOWING[:2])
    assert await statuses(busy, *FOLLOWING[2:]) == ["pending"] * 3
    assert len(busy.executor.runs) == 1
    assert [event for event in await busy.events() if event[1] != "r1"] == []
    assert busy.worker.demands.slots == 0, "they are ready, and count as such"
    assert {each.status for each in busy.worker.held("server") if not each.begun} == {
        Status.PENDING,
        Status.ASSIGNED,
    }


async def test_a_free_slot_begins_the_next_one_though_the_disk_stands_still(busy: Core) -> None:
    await busy.bring(*FOLLOWING[:1])
    await armed(busy, FOLLOWING[0])
    gate = busy.store.hold("save_all", before=True)
    current(busy).end()
    run = await busy.executor.next_run()
    assert run.launch.key == FOLLOWING[0].key
    assert (await busy.get(RUNNING)).status is Status.RUNNING, "its end is not stored yet"
    gate.set()
    await busy.until_status(RUNNING, "completed")
    await busy.until_status(FOLLOWING[0], "running")
    assert (await busy.get(FOLLOWING[0])).start_id == run.launch.start_id


async def test_all_of_many_run_once_and_in_order(busy: Core) -> None:
    await busy.bring(*FOLLOWING)
    current(busy).end()
    for each in FOLLOWING:
        run = await busy.executor.next_run()
        assert run.launch.key == each.key
        run.end()
    for each in FOLLOWING:
        assert (await busy.until_status(each, "completed")).run_no == 1
    await busy.until_idle()
    assert await busy.rooms() == []


async def test_an_armed_task_that_is_cancelled_never_runs(busy: Core) -> None:
    await busy.bring(*FOLLOWING[:2])
    await armed(busy, *FOLLOWING[:2])
    assert await busy.worker.cancel(FOLLOWING[0].key, code=7, reason="by Ada")
    current(busy).end()
    assert (await busy.executor.next_run()).launch.key == FOLLOWING[1].key
    cancelled = await busy.until_status(FOLLOWING[0], "cancelled")
    assert cancelled.outcome
    assert (cancelled.outcome.error_code, cancelled.run_no) == (7, 0)
    assert cancelled.start_id not in {path.name for path in await busy.rooms()}


async def test_something_more_urgent_comes_first_and_nothing_armed_is_lost(busy: Core) -> None:
    await busy.bring(*FOLLOWING[:2])
    await armed(busy, *FOLLOWING[:2])
    urgent = [task(f"u{n}", priority=3, created_at=90.0 + n) for n in range(3)]
    await busy.bring(*urgent)
    current(busy).end()
    assert (await busy.executor.next_run()).launch.key == urgent[0].key
    for each in FOLLOWING[:2]:  # they were overtaken: others are armed instead
        await busy.until_status(each, "pending")
    await armed(busy, *urgent[1:])
    for each in (*urgent[1:], *FOLLOWING[:2]):
        current(busy).end()
        assert (await busy.executor.next_run()).launch.key == each.key
    ids = [run.launch.start_id for run in busy.executor.runs.values()]
    assert len(set(ids)) == len(ids) == 6


async def test_after_a_kill_what_was_armed_never_began_and_waits_again(busy: Core) -> None:
    await busy.bring(*FOLLOWING[:2])
    await armed(busy, *FOLLOWING[:2])
    old = [(await busy.get(each)).start_id for each in FOLLOWING[:2]]
    first = current(busy)
    core = await busy.again()
    await core.start()
    await until(lambda: {start for start, _ in core.executor.asked} >= set(old))
    first.end()
    for each in FOLLOWING[:2]:
        run = await core.executor.next_run()
        assert run.launch.key == each.key
        assert run.launch.start_id not in old
        run.end()
        assert (await core.until_status(each, "completed")).run_no == 1
    await core.kill()


async def test_who_leaves_gives_back_what_was_armed(busy: Core) -> None:
    await busy.bring(*FOLLOWING)
    await armed(busy, *FOLLOWING[:2])
    await within(busy.worker.leave())
    assert await statuses(busy, *FOLLOWING) == ["pending"] * 5
    assert await busy.rooms() == [Path(current(busy).launch.scratch)]
    await within(busy.worker.give_back())
    assert await statuses(busy, *FOLLOWING) == ["cancelled"] * 5
    told = [kind for kind, name in await busy.events() if name != "r1"]
    assert told == ["release"] * 5


async def test_no_armed_start_begins_after_its_lease_has_ended(tmp_path: Path) -> None:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock, max_workers=1, ahead=2)
    await core.start()
    await core.bring(RUNNING)
    first = await core.executor.next_run()
    lent = task("lent", lease=Lease(until=Instant.now(clock).plus(5)))
    await core.bring(lent)
    await core.until_status(lent, "assigned")
    await clock.advance(6)
    first.end()
    await core.until_status(RUNNING, "completed")
    await turns()
    assert len(core.executor.runs) == 1
    core.worker.renewed(lent.key, Lease(until=Instant.now(clock).plus(60)))
    assert (await core.executor.next_run()).launch.key == lent.key
    await core.close()


class Forgetful:
    """A third party's executor without `reattach`."""

    def __init__(self) -> None:
        self.hand = HandExecutor(outlives=False)

    @hookimpl
    def execute(self, launch: Launch) -> Awaitable[Execution] | None:
        return self.hand._start(launch)


async def test_what_nobody_could_find_again_is_stored_when_its_slot_is_free(
    tmp_path: Path,
) -> None:
    """After a crash it would count as lost although it never began."""
    forgetful = Forgetful()
    core = await Core.open(tmp_path, max_workers=1, ahead=2, forgetful=forgetful)
    core.executor.takes = False
    await core.start()
    await core.bring(RUNNING, *FOLLOWING[:2])
    run = await forgetful.hand.next_run()
    await core.until_status(RUNNING, "running")
    await turns()
    assert await statuses(core, *FOLLOWING[:2]) == ["pending"] * 2
    run.end()
    assert (await forgetful.hand.next_run()).launch.key == FOLLOWING[0].key
    await core.close()


async def test_who_asks_for_resources_is_not_armed(busy: Core) -> None:
    busy.bench.machine.learn(Inventory(cpu_cores=4))
    asking = task("asking", created_at=2.0, resources=Resources(cpus=1.0))
    await busy.bring(asking, FOLLOWING[0])
    await armed(busy, FOLLOWING[0])
    assert await statuses(busy, asking) == ["pending"]
    current(busy).end()
    assert (await busy.executor.next_run()).launch.key == asking.key, "it is next all the same"


async def test_without_depth_nothing_is_armed(tmp_path: Path) -> None:
    core = await Core.open(tmp_path, max_workers=1, ahead=0)
    await core.start()
    await core.bring(RUNNING, *FOLLOWING)
    await core.executor.next_run()
    await core.until_status(RUNNING, "running")
    await asyncio.gather(*(core.store.next_due(0.0) for _ in range(3)))
    assert await statuses(core, *FOLLOWING) == ["pending"] * 5
    await core.close()
