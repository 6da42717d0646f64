"""What waits here in vain goes back to its source: another machine may be idle."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_core.errors import StoreFull
from agent_core.lifecycle import Status
from agent_core.models import Reason, Task
from agent_core.returns import PATIENCE
from agent_core.testing.clock import TurnedClock
from agent_core.testing.executors import HandRun
from tests.agent_core.core import Core, task, turns, until, within

LONG = task("long", created_at=1.0)
AHEAD = [task(f"a{n}", created_at=10.0 + n) for n in range(4)]


class House:
    """One slot, in which a long run is; its source takes back what waits in vain."""

    def __init__(self, core: Core, clock: TurnedClock) -> None:
        self.core = core
        self.clock = clock

    async def begin(self) -> HandRun:
        self.core.worker.returns.heard("server", takes_back=True)
        await self.core.start()
        await self.core.bring(LONG)
        run = await self.core.executor.next_run()
        await self.core.until_status(LONG, "running")
        return run

    async def waits(self, *tasks: Task) -> None:
        """They wait by now, and somebody looks at the clock."""
        await self.core.bring(*tasks)
        await self.settle()
        await within(self.clock.until_sleeping())

    async def settle(self) -> None:
        for _ in range(10):
            await turns()
            await self.core.store.next_due(0.0)

    async def statuses(self, *tasks: Task) -> list[str]:
        return [(await self.core.get(each)).status.value for each in tasks]

    async def released(self) -> list[str]:
        await self.settle()
        return [name for kind, name in await self.core.events() if kind == "release"]


@pytest.fixture(params=[0, 2])
async def house(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock, max_workers=1, ahead=request.param)
    yield House(core, clock)
    await core.close()


async def test_who_waits_while_no_slot_is_free_goes_back_and_never_begins(house: House) -> None:
    run = await house.begin()
    await house.waits(*AHEAD)
    await house.clock.advance(PATIENCE)
    for each in AHEAD:
        gone = await house.core.until_status(each, "cancelled")
        assert gone.outcome
        assert (gone.outcome.reason, gone.run_no) == (Reason.RELEASED, 0)
    assert sorted(await house.released()) == sorted(each.id for each in AHEAD)
    assert [held.key for held in house.core.worker.held("server")] == [LONG.key]
    run.end()
    await house.core.until_idle()
    assert len(house.core.executor.runs) == 1
    await until(lambda: not list(house.core.bench.runs_dir.iterdir()))


async def test_who_went_back_is_not_asked_for_before_a_slot_is_free(house: House) -> None:
    await house.begin()
    await house.waits(AHEAD[0])
    await house.clock.advance(PATIENCE)
    await house.core.until_status(AHEAD[0], "cancelled")
    told = house.core.worker.demands.now()
    assert told.slots == told.standby, "nothing that would begin"


async def test_each_slot_that_is_free_again_begins_the_time_anew(house: House) -> None:
    run = await house.begin()
    await house.waits(*AHEAD)
    await house.clock.advance(PATIENCE * 0.9)
    run.end()
    run = await house.core.executor.next_run()
    await house.core.until_status(AHEAD[0], "running")
    await house.clock.advance(PATIENCE * 0.9)
    assert await house.released() == []
    await house.clock.advance(PATIENCE * 2)
    for each in AHEAD[1:]:
        await house.core.until_status(each, "cancelled")
    assert (await house.core.get(AHEAD[0])).status is Status.RUNNING


async def test_who_came_late_waits_as_long_as_anybody_else(house: House) -> None:
    await house.begin()
    await house.waits(AHEAD[0])
    await house.clock.advance(PATIENCE * 0.9)
    await house.core.bring(AHEAD[1])
    await house.settle()
    await house.clock.advance(PATIENCE * 0.2)
    await house.core.until_status(AHEAD[0], "cancelled")
    assert await house.released() == [AHEAD[0].id]
    await house.clock.advance(PATIENCE * 2)
    await house.core.until_status(AHEAD[1], "cancelled")


async def test_what_nobody_else_has_stays(house: House) -> None:
    """Local work, what has run here before, and that of a source that cannot give it to others."""
    run = await house.begin()
    retried = task("retried", max_retries=1, retry_delay=0.5)
    run.end()
    await house.core.until_idle()
    await house.core.bring(retried)
    (await house.core.executor.next_run()).end(1)
    await house.core.until_status(retried, "pending")
    await house.core.until_idle()
    await house.core.bring(task("long again"))
    run = await house.core.executor.next_run()
    stay = [task("local", source=""), task("polled", source="polled")]
    await house.waits(*stay)
    await house.clock.advance(PATIENCE * 3)
    assert await house.released() == []
    assert Status.CANCELLED.value not in await house.statuses(*stay, retried)
    began = set()
    for _ in range(3):
        run.end()
        run = await house.core.executor.next_run()
        began.add(run.launch.key.task_id)
    assert began == {"local", "polled", "retried"}


async def test_a_source_that_takes_nothing_back_any_more_is_given_nothing(house: House) -> None:
    await house.begin()
    await house.waits(AHEAD[0])
    house.core.worker.returns.heard("server", takes_back=False)
    await house.clock.advance(PATIENCE * 3)
    assert await house.released() == []
    house.core.worker.returns.heard("server", takes_back=True)
    await house.clock.advance(PATIENCE * 3)
    await house.core.until_status(AHEAD[0], "cancelled")


async def test_who_has_room_made_for_it_stays_however_long_that_takes(house: House) -> None:
    run = await house.begin()
    run.deaf, run.grace = True, 3600.0
    urgent = task("urgent", priority=1)
    await house.waits(*AHEAD[:2], urgent)
    await run.signalled()
    await house.clock.advance(PATIENCE * 3)
    for each in AHEAD[:2]:
        await house.core.until_status(each, "cancelled")
    assert urgent.id not in await house.released()
    run.end()
    assert (await house.core.executor.next_run()).launch.key == urgent.key


async def test_a_slot_that_is_free_while_they_go_back_begins_none_of_them_twice(
    house: House,
) -> None:
    """Nor does one come back into line from the store while its end is on the way there."""
    run = await house.begin()
    await house.waits(*AHEAD)
    gate = house.core.store.hold("save_all", before=True)
    entered = house.core.store.entered["save_all"]
    await house.clock.advance(PATIENCE)
    await within(entered.wait())
    house.core.worker.waiting.feed.look_again()
    run.end()
    await until(lambda: LONG.id not in [each.task.id for each in house.core.bench.machine.running])
    await house.settle()
    gate.set()
    for each in AHEAD:
        await house.core.until_status(each, "cancelled")
    await house.core.until_idle()
    assert sorted(await house.released()) == sorted(each.id for each in AHEAD)
    assert len(house.core.executor.runs) == 1
    assert house.core.worker.held("server") == []


async def test_one_that_is_cancelled_while_it_goes_back_is_cancelled(tmp_path: Path) -> None:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock, max_workers=1, ahead=1)
    house = House(core, clock)
    await house.begin()
    await house.waits(AHEAD[0])
    await core.until_status(AHEAD[0], "assigned")
    gate = core.store.hold("save_all", before=True)
    entered = core.store.entered["save_all"]
    await clock.advance(PATIENCE)
    await within(entered.wait())  # its start is given back
    await core.worker.cancel(AHEAD[0].key, code=7, reason="by Ada")
    gate.set()
    ended = await core.until_status(AHEAD[0], "cancelled")
    assert ended.outcome
    assert (ended.outcome.reason, ended.outcome.error) == (Reason.CANCELLED, "by Ada")
    assert await house.released() == []
    await core.close()


@pytest.mark.parametrize("house", [0], indirect=True)
async def test_a_full_disk_is_said_once_and_the_task_goes_back_later(house: House) -> None:
    await house.begin()
    await house.waits(AHEAD[0])
    calls = house.core.store.calls
    for _ in range(3):
        before = len(calls)
        house.core.store.fail("save_all", StoreFull("no room"))
        await house.clock.advance(PATIENCE)
        await until(lambda before=before: "save_all" in calls[before:])
        await house.settle()
        await within(house.clock.until_sleeping())
    assert await house.released() == []
    assert house.core.said.getvalue().count("cannot be given back") == 1
    await house.clock.advance(PATIENCE * 2)
    await house.core.until_status(AHEAD[0], "cancelled")


@pytest.mark.parametrize("house", [1], indirect=True)
async def test_one_that_gave_its_start_back_and_cannot_go_waits_and_goes_later(
    house: House,
) -> None:
    await house.begin()
    await house.waits(AHEAD[0])
    await house.core.until_status(AHEAD[0], "assigned")
    house.core.store.fail("save_all", None, StoreFull("no room"))
    await house.clock.advance(PATIENCE)
    await until(lambda: "cannot be given back" in house.core.said.getvalue())
    await house.core.until_status(AHEAD[0], "assigned")  # it waits as before
    assert await house.released() == []
    await house.settle()
    await house.clock.advance(PATIENCE * 2)
    await house.core.until_status(AHEAD[0], "cancelled")


async def test_who_leaves_gives_it_back_as_one_that_leaves(house: House) -> None:
    await house.begin()
    await house.waits(*AHEAD[:2])
    await within(house.core.worker.leave())
    await house.clock.advance(PATIENCE * 3)
    assert await house.released() == []
    await within(house.core.worker.give_back())
    gone = await house.core.get(AHEAD[0])
    assert gone.outcome
    assert gone.outcome.error == "given back: the agent stops"
