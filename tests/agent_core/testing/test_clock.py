"""A clock turned by hand: nothing happens by itself, and what happens happens in order."""

import asyncio

from agent_core.clock import Instant
from agent_core.testing.clock import TurnedClock


async def test_time_stands_still_until_it_is_turned():
    clock = TurnedClock(wall=100.0, boottime=5.0)
    await asyncio.sleep(0.01)
    assert (clock.wall(), clock.boottime()) == (100.0, 5.0)
    await clock.advance(2.5)
    assert (clock.wall(), clock.boottime()) == (102.5, 7.5)


async def test_sleepers_wake_at_their_times_in_order_and_those_that_sleep_again_too():
    clock = TurnedClock(wall=0.0, boottime=0.0)
    woke: list[tuple[str, float]] = []

    async def every(name: str, seconds: float) -> None:
        while True:
            await clock.sleep(seconds)
            woke.append((name, clock.boottime()))

    jobs = [asyncio.create_task(every("a", 3.0)), asyncio.create_task(every("b", 2.0))]
    await clock.until_sleeping(2)
    assert clock.next_wake == 2.0
    await clock.advance(6.5)
    assert woke == [("b", 2.0), ("a", 3.0), ("b", 4.0), ("a", 6.0), ("b", 6.0)]
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    assert (clock.sleeping, clock.next_wake) == (0, None)
    await clock.advance(10.0)
    assert len(woke) == 5


async def test_no_time_at_all_is_slept_at_once():
    clock = TurnedClock()
    await clock.sleep(0)
    await clock.sleep(-1)
    assert clock.sleeping == 0


async def test_a_jump_of_the_wall_wakes_nobody():
    clock = TurnedClock(wall=1000.0)
    sleeper = asyncio.create_task(clock.sleep(10.0))
    await clock.until_sleeping()
    moment = Instant.now(clock)
    clock.jump_wall(-500.0)
    await clock.advance(9.0)
    assert not sleeper.done()
    assert clock.wall() == 509.0
    assert moment.age(clock) == 9.0
    await clock.advance(1.0)
    await sleeper


async def test_after_a_reboot_only_the_wall_tells_how_long_ago_it_was():
    clock = TurnedClock(wall=1000.0, boottime=77.0)
    moment = Instant.now(clock)
    clock.jump_wall(300.0)
    clock.reboot()
    assert moment.boot_id != clock.boot_id
    assert clock.boottime() < 77.0
    assert moment.age(clock) == 300.0


async def test_who_waits_for_several_sleepers_waits_for_all_of_them():
    clock = TurnedClock()
    waiting = asyncio.create_task(clock.until_sleeping(2))
    first = asyncio.create_task(clock.sleep(1.0))
    await asyncio.sleep(0.001)
    assert not waiting.done()
    second = asyncio.create_task(clock.sleep(1.0))
    await waiting
    await clock.advance(1.0)
    await asyncio.gather(first, second)


async def test_turning_waits_until_nothing_is_ready_any_more():
    clock = TurnedClock()
    done = []

    async def long_way() -> None:
        await clock.sleep(1.0)
        for _ in range(1000):
            await asyncio.sleep(0)
        done.append(clock.boottime())

    job = asyncio.create_task(long_way())
    await clock.advance(5.0)
    assert done == [1001.0]
    await job
