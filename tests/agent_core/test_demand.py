"""What this agent says that it could take, and when it says that this has changed."""

from pathlib import Path
from typing import Any

import pytest

from agent_core.api.resources import Resources
from agent_core.demand import LATELY, READY_LEAST, READY_MOST, Demands
from agent_core.feed import Feed
from agent_core.hookspecs import hookimpl
from agent_core.inventory import Gpu, Inventory
from agent_core.machine import Machine
from agent_core.models import (
    Demand,
    Task,
)
from agent_core.testing.clock import TurnedClock
from agent_core.waiting import Waiting
from agent_core_plugins.priority_scheduler.line import Line
from tests.agent_core.core import Core, task, turns, within

GPUS = tuple(Gpu(index=n, uuid=f"GPU-{n}", name="NVIDIA H100") for n in range(2))


class Metrics:
    """Four processors and two GPUs."""

    @hookimpl
    async def inventory(self) -> Inventory:
        return Inventory(cpu_cores=4, memory_total=2**34, gpus=GPUS)


@pytest.fixture
async def core(tmp_path: Path) -> Any:
    made = await Core.open(tmp_path, metrics=Metrics())
    await made.start()
    yield made
    await made.close()


def gpu(name: str, count: int = 1, **fields: Any) -> Task:
    return task(name, resources=Resources(gpus=count), **fields)


async def running(core: Core, *given: Task) -> list[Any]:
    runs = []
    for each in given:
        await core.bring(each)
        runs.append(await core.executor.next_run())
        await core.until_status(each, "running")
    await settle(core)
    return runs


async def settle(core: Core) -> None:
    for _ in range(5):
        await turns()
        await core.store.next_due(0.0)
    await turns()


def now(core: Core) -> Demand:
    return core.worker.demands.now()


def devices(core: Core) -> list[str]:
    return [device.uuid for device in now(core).free.devices]


# --- how much


async def test_an_idle_agent_takes_its_slots_and_two_to_have_ready(core: Core) -> None:
    told = now(core)
    assert (told.slots, told.standby, told.free.slots) == (4, 2, 2)
    assert told.urgent_at_most is None
    assert (told.free.cpus, told.free.memory) == (4.0, 2**34)
    assert devices(core) == ["GPU-0", "GPU-1"]
    assert told.again is not None
    assert told.again() == told


async def test_what_runs_and_what_waits_is_not_offered(core: Core) -> None:
    await running(core, gpu("t1"), task("t2", resources=Resources(cpus=1.5, memory=2**30)))
    told = now(core)
    assert (told.slots, told.free.slots, told.free.cpus) == (2, 0, 2.5)
    assert told.free.memory == 2**34 - 2**30
    assert devices(core) == ["GPU-1"]
    await core.bring(gpu("t3"))
    assert now(core).slots == 1
    assert devices(core) == []


async def test_what_waits_for_more_than_is_free_has_what_there_is_kept(core: Core) -> None:
    await running(core, gpu("t1"))
    await core.bring(gpu("t2", 2))
    await settle(core)
    assert (now(core).free.slots, devices(core)) == (0, [])
    assert now(core).slots == 2


async def test_the_more_often_runs_end_the_more_are_had_ready(tmp_path: Path) -> None:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock)
    ready = core.worker.demands
    for _ in range(30):
        ready.ended(0.05)
    await clock.advance(0.6)
    for _ in range(10):
        ready.ended(0.05)
    assert ready.slots == 2 + 40
    await clock.advance(0.6)
    assert ready.slots == 2 + 10
    for _ in range(1000):
        ready.ended(0.05)
    assert ready.slots == 2 + READY_MOST
    assert ready.now().standby == 0
    await clock.advance(2)
    assert ready.slots == 2 + READY_LEAST
    assert ready.now().standby == READY_LEAST
    await core.close()


async def test_the_end_of_a_long_run_does_not_say_that_a_slot_is_soon_free_again(
    tmp_path: Path,
) -> None:
    """Were eight runs of a minute to end at once, eight tasks would wait here for a minute."""
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock)
    await core.start()
    for name, seconds in (("long", LATELY + 0.1), ("short", LATELY - 0.1)):
        [run] = await running(core, task(name))
        await clock.advance(seconds)
        run.end()
        await core.until_idle()
        told = now(core)
        assert told.slots - told.standby == (2 if name == "long" else 3)
    await core.close()


async def test_who_leaves_takes_nothing(core: Core) -> None:
    await within(core.worker.leave())
    told = now(core)
    assert (told.slots, told.free.slots, told.urgent_at_most) == (0, 0, None)


# --- urgent work


@pytest.mark.parametrize(
    ("priorities", "at_most"), [((9, 4), 6), ((4, 4), 1), ((3, 2), None), ((10, 10), 7)]
)
async def test_a_full_agent_says_who_would_begin_all_the_same(
    core: Core, priorities: tuple[int, int], at_most: int | None
) -> None:
    await running(core, *(task(f"t{n}", priority=each) for n, each in enumerate(priorities)))
    assert now(core).urgent_at_most == at_most


async def test_those_for_whom_room_is_coming_and_those_ahead_are_counted(core: Core) -> None:
    runs = await running(core, task("low", priority=9), task("middle", priority=6))
    for run in runs:
        run.deaf, run.grace = True, 3600.0
    await core.bring(task("urgent", priority=2))
    assert now(core).urgent_at_most == 3, "before anybody was told to make room"
    await runs[0].signalled()
    assert now(core).urgent_at_most == 3, "and after it"
    await core.bring(task("urgent too", priority=3))
    await runs[1].signalled()
    assert now(core).urgent_at_most is None
    for run in runs:
        run.end()


async def test_one_that_is_ended_by_its_user_makes_room_for_nobody_else(core: Core) -> None:
    low, _ = await running(core, task("low", priority=9), task("middle", priority=4))
    low.deaf, low.grace = True, 3600.0
    await core.worker.cancel(task("low").key, code=1, reason="by Ada")
    assert now(core).urgent_at_most == 1
    low.end()


# --- when it has changed


async def test_that_there_is_room_at_all_is_told_at_once(core: Core) -> None:
    runs = await running(core, task("t1"), task("t2"))
    await core.bring(task("t3"), task("t4"))
    await settle(core)
    assert now(core).slots == 0
    changed = core.worker.demands.changed.next()
    runs[0].end()
    await within(changed)
    assert now(core).slots > 0


class Alone:
    """Demands of a machine on which nobody works but the test; what is gathered waits for it."""

    def __init__(self) -> None:
        self.clock = clock = TurnedClock()
        self.machine = Machine(2, {}, clock)
        self.machine.learn(Inventory(cpu_cores=4, gpus=GPUS))
        store: Any = None  # nothing is brought in here
        self.waiting = Waiting(Line(), Feed(store, clock), self.machine.could_run)
        self.demands = Demands(self.machine, self.waiting, clock, gather=3600.0)
        self.demands.look()
        self.changed = self.demands.changed.next()

    def take(self, given: Task) -> None:
        assert self.machine.take(given) is not None
        self.demands.look()

    def give_back(self, given: Task) -> None:
        self.machine.give_back(given.key)
        self.demands.look()


async def test_what_is_free_besides_is_told_gathered() -> None:
    alone = Alone()
    for name in ("t1", "t2"):
        alone.take(gpu(name))
    assert not alone.changed.done()
    alone.demands._gathered()
    assert alone.changed.done(), "two changes, told as one"
    assert alone.demands.now().urgent_at_most == 2
    again = alone.demands.changed.next()
    alone.give_back(gpu("t1"))
    alone.demands._gathered()
    assert again.done()
    alone.demands.close()


async def test_a_change_that_is_undone_is_not_told() -> None:
    alone = Alone()
    alone.take(gpu("t1"))
    alone.give_back(gpu("t1"))
    alone.demands._gathered()
    assert not alone.changed.done()


async def test_more_slots_than_before_are_no_news() -> None:
    alone = Alone()
    alone.take(task("t1"))
    alone.give_back(task("t1"))
    assert alone.demands._later is None
    assert not alone.changed.done()


async def test_what_would_wait_for_long_only_stands_by() -> None:
    """Another machine may be idle, and what is granted here could not begin there."""
    alone = Alone()

    def told() -> tuple[int, int]:
        demand = alone.demands.now()
        return demand.slots, demand.standby

    assert told() == (2 + READY_LEAST, READY_LEAST)
    for name in ("t1", "t2"):
        alone.take(task(name))
    assert told() == (READY_LEAST, READY_LEAST)
    alone.waiting.add(task("t3"))
    assert told() == (READY_LEAST - 1, READY_LEAST - 1)
    for expected in ((1, 1), (1, 0), (2, 0)):
        alone.demands.ended(0.1)
        assert told() == expected
    await alone.clock.advance(2)
    assert told() == (READY_LEAST - 1, READY_LEAST - 1)
    alone.demands.close()


async def test_that_nothing_ends_any_more_is_told_without_anything_that_happens() -> None:
    """Or a question that hangs would still bring what nobody here begins soon."""
    alone = Alone()
    alone.take(task("t1"))
    alone.demands.ended(0.1)
    changed = alone.demands.changed.next()
    await alone.clock.advance(0.9)
    alone.demands._calmed()
    assert not changed.done()
    await alone.clock.advance(0.9)
    alone.demands._calmed()
    assert changed.done()
    alone.demands.close()


async def test_a_slot_that_is_free_again_is_told_at_once_whatever_stands_by() -> None:
    alone = Alone()
    for name in ("t1", "t2"):
        alone.take(task(name))
    changed = alone.demands.changed.next()
    alone.demands.look()
    assert not changed.done()
    alone.give_back(task("t1"))
    assert changed.done()
    alone.demands.close()


async def test_each_time_that_there_is_room_again_is_told_at_once() -> None:
    alone = Alone()
    for name in ("t1", "t2"):
        alone.take(task(name))
    for _ in range(2):
        changed = alone.demands.changed.next()
        alone.waiting.add(task("t3"))
        alone.waiting.add(task("t4"))
        alone.demands.look()
        assert not changed.done()
        assert alone.demands.slots == 0
        alone.waiting.remove(task("t4").key)
        alone.demands.look()
        assert changed.done()
    alone.demands.close()


# --- when it is urgent


async def test_a_slot_that_is_idle_again_is_told_to_those_who_gather() -> None:
    """To a claim that hangs it is no news: the server knows that there is room."""
    alone = Alone()
    alone.demands.ended(0.05)
    for name in ("t1", "t2"):
        alone.take(task(name))
    changed, hurry = alone.demands.changed.next(), alone.demands.hurry.next()
    alone.give_back(task("t1"))
    assert hurry.done()
    assert not changed.done()
    again = alone.demands.hurry.next()
    alone.give_back(task("t2"))
    assert not again.done(), "told already"
    alone.demands.close()


async def test_that_what_is_had_ready_will_soon_be_used_up_is_told_to_those_who_gather() -> None:
    alone = Alone()
    for _ in range(12):
        alone.demands.ended(0.05)
    for name in ("t1", "t2"):
        alone.take(task(name))
    ready = [task(f"r{number}") for number in range(12)]
    for each in ready:
        alone.waiting.add(each)
    alone.demands.look()
    assert not alone.demands.now().short
    hurry = alone.demands.hurry.next()
    for each in ready[:8]:
        alone.waiting.remove(each.key)
        alone.demands.look()
        assert not hurry.done()
    alone.waiting.remove(ready[8].key)
    alone.demands.look()
    assert hurry.done()
    assert alone.demands.now().short
    alone.demands.close()
