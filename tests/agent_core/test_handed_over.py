"""Starts that an executor has before there is a slot for them: who is handed over and who not."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from agent_core.api.resources import Resources
from agent_core.clock import Instant, SystemClock
from agent_core.hookspecs import hookimpl
from agent_core.inventory import Inventory
from agent_core.models import Launch, Lease, Reason, Task
from agent_core.protocols import Ahead, Execution
from agent_core.testing.executors import HandExecutor, HandRun
from tests.agent_core.core import Core, task, turns, until, within

RUNNING = task("r1", created_at=1.0)
FOLLOWING = [task(f"f{n}", created_at=10.0 + n) for n in range(4)]


class HandStart(Ahead):
    """Begins when a test says that a run's place was passed on to it."""

    def __init__(self, executor: "Heir", launch: Launch) -> None:
        self.executor = executor
        self.launch = launch
        self.until = 0.0
        self.began: Callable[[], None]
        self.run: Execution | None = None

    def __await__(self) -> Generator[Any, None, Execution]:
        return self._begin().__await__()

    async def _begin(self) -> Execution:
        if self in self.executor.handed:
            self.executor.handed.remove(self)
        if self.run is None:
            self.run = await self.executor._start(self.launch)
        return self.run

    def hand_over(self, until: float, began: Callable[[], None]) -> bool:
        self.until, self.began = until, began
        self.executor.handed.append(self)
        return True

    async def recall(self) -> bool:
        if self.executor.recalls:
            await self.executor.recalls.wait()
        if self in self.executor.handed:
            self.executor.handed.remove(self)
        return self.run is None


class Heir(HandExecutor):
    """An executor that takes starts ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: list[HandStart] = []
        self.recalls: asyncio.Event | None = None  # recalls wait for it

    @hookimpl
    def execute(self, launch: Launch) -> HandStart:
        return HandStart(self, launch)

    async def passes_on(self) -> HandRun:
        """What a run's end lets begin."""
        start = self.handed.pop(0)
        start.run = await self._start(start.launch)
        start.began()
        return await self.next_run()

    async def holds(self, *tasks: Task) -> None:
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
    await busy.bring(*FOLLOWING[:1])
    await heir.holds(*FOLLOWING[:1])
    urgent = task("urgent", priority=3, created_at=90.0)
    heir.recalls = asyncio.Event()
    await busy.bring(urgent)
    await busy.until_status(urgent, "assigned")
    await turns()
    heir.recalls.set()
    await heir.holds(urgent, FOLLOWING[0])


async def test_one_that_begins_while_it_is_recalled_runs_once(busy: Core, heir: Heir) -> None:
    await busy.bring(*FOLLOWING[:1])
    await heir.holds(*FOLLOWING[:1])
    urgent = task("urgent", priority=3, created_at=90.0)
    heir.recalls = asyncio.Event()
    await busy.bring(urgent)
    await busy.until_status(urgent, "assigned")
    run = await heir.passes_on()
    first(heir).end()
    heir.recalls.set()
    await busy.until_status(FOLLOWING[0], "running")
    await heir.holds(urgent)
    run.end()
    assert (await busy.until_status(FOLLOWING[0], "completed")).run_no == 1
    assert (await heir.next_run()).launch.key == urgent.key
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
