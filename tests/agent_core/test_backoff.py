"""Pauses grow to their cap, differ from each other, heed what was asked for, and can be ended."""

import asyncio
import math
import random

import pytest

from agent_core.backoff import LONGEST_ASKED_FOR, Backoff, pause
from agent_core.testing.clock import TurnedClock


class Highest(random.Random):
    """The longest pause that could be drawn."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Lowest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return a


def test_pauses_double_up_to_the_cap_and_begin_anew_after_a_success():
    backoff = Backoff(rng=Highest())
    assert [backoff.next() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert [backoff.next() for _ in range(2)] == [1, 2]


def test_a_thousand_failures_pause_no_longer_than_the_cap():
    backoff = Backoff(base=0.5, cap=10.0, rng=Highest())
    assert max(backoff.next() for _ in range(2000)) == 10.0


def test_no_pause_is_nearly_nothing():
    backoff = Backoff(base=2.0, rng=Lowest())
    assert {backoff.next() for _ in range(10)} == {0.2}


def test_jitter_is_full_so_that_a_fleet_does_not_come_back_at_once():
    drawn = []
    for seed in range(400):
        backoff = Backoff(rng=random.Random(seed))
        drawn.append([backoff.next() for _ in range(4)][3])
    assert all(0.1 <= each <= 8.0 for each in drawn)
    quarters = [sum(2 * part <= each < 2 * part + 2 for each in drawn) for part in range(4)]
    assert min(quarters) > 60  # of 100 expected


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        (None, 1.0),
        (0.0, 1.0),
        (-5.0, 1.0),
        (30.0, 30.0),
        (90.0, 90.0),  # more than our own cap: the server knows better
        (1e9, LONGEST_ASKED_FOR),
        (math.inf, 1.0),
        (math.nan, 1.0),
    ],
)
def test_what_the_other_side_asked_for_is_heeded_within_reason(asked, waited):
    assert Backoff(rng=Highest()).next(asked) == waited


async def test_a_pause_ends_when_its_time_is_over():
    clock = TurnedClock()
    waiting = asyncio.ensure_future(pause(5.0, asyncio.Event(), clock=clock))
    await clock.until_sleeping()
    await clock.advance(4.9)
    assert not waiting.done()
    await clock.advance(0.1)
    assert await waiting is False


@pytest.mark.parametrize("which", [0, 1])
async def test_a_pause_ends_when_any_of_its_events_is_set(which):
    clock = TurnedClock()
    events = [asyncio.Event(), asyncio.Event()]
    waiting = asyncio.ensure_future(pause(math.inf, *events, clock=clock))
    await clock.until_sleeping()
    events[which].set()
    assert await waiting is True
    await asyncio.sleep(0)
    assert clock.sleeping == 0  # nothing is left behind


async def test_a_pause_with_an_event_that_is_set_already_is_none():
    clock = TurnedClock()
    event = asyncio.Event()
    event.set()
    assert await pause(5.0, event, clock=clock) is True
    assert clock.sleeping == 0


async def test_a_pause_that_is_cancelled_leaves_nothing_behind():
    clock = TurnedClock()
    waiting = asyncio.ensure_future(pause(5.0, asyncio.Event(), clock=clock))
    await clock.until_sleeping()
    before = len(asyncio.all_tasks())
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.sleep(0)
    assert clock.sleeping == 0
    assert len(asyncio.all_tasks()) == before - 3


async def test_the_machines_own_clock_is_the_default():
    assert await pause(0.001) is False
    assert await pause(-1.0, asyncio.Event()) is False
