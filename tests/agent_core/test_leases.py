"""The leases that we hold."""

import math
from dataclasses import replace

import pytest

from agent_core.clock import Instant
from agent_core.leases import Leases
from agent_core.lifecycle import Status
from agent_core.models import Lease
from agent_core.testing.clock import TurnedClock
from tests.agent_core.core import task


def lease(clock: TurnedClock, seconds: float) -> Lease:
    return Lease(until=Instant.now(clock).plus(seconds))


async def test_a_run_may_begin_until_the_very_end_of_its_lease_and_not_after() -> None:
    clock = TurnedClock()
    leases = Leases(clock)
    given = task(lease=lease(clock, 10))
    await clock.advance(9.9)
    assert not leases.over(given)
    await clock.advance(0.1)
    assert leases.over(given)


def test_a_local_task_has_no_lease_that_could_end() -> None:
    leases = Leases(TurnedClock())
    assert leases.of(task(source="")) is None
    assert not leases.over(task(source=""))


async def test_a_renewal_counts_until_the_task_is_dropped() -> None:
    clock = TurnedClock()
    leases = Leases(clock)
    given = task(lease=lease(clock, 10))
    longer = lease(clock, 20)
    leases.renew(given, longer)
    await clock.advance(15)
    assert leases.of(given) == longer
    assert not leases.over(given)
    leases.drop(given.key)
    leases.drop(given.key)
    assert leases.over(given)


async def test_a_wall_clock_that_jumps_ends_no_lease() -> None:
    clock = TurnedClock()
    leases = Leases(clock)
    given = task(lease=lease(clock, 10))
    clock.jump_wall(86400)
    assert not leases.over(given)


async def test_after_a_reboot_the_wall_clock_decides() -> None:
    clock = TurnedClock()
    leases = Leases(clock)
    given = task(lease=lease(clock, 10))
    clock.reboot()
    assert not leases.over(given)
    clock.jump_wall(11)
    assert leases.over(given)


@pytest.mark.parametrize(
    ("status", "run_no", "begun"),
    [
        (Status.PENDING, 0, False),
        (Status.ASSIGNED, 0, False),
        (Status.PENDING, 1, True),
        (Status.ASSIGNED, 1, True),
        (Status.RUNNING, 1, True),
        (Status.RUNNING, 0, True),
    ],
)
def test_an_attempt_has_begun_with_its_first_run(status: Status, run_no: int, begun: bool) -> None:
    clock = TurnedClock()
    given = task(status=status, run_no=run_no, lease=lease(clock, 5), timeout=9.0)
    held = Leases(clock).held(given)
    assert (held.begun, held.status, held.key) == (begun, status, given.key)
    assert (held.source, held.timeout, held.lease) == ("server", 9.0, given.lease)


async def test_a_run_that_goes_on_without_contact_is_never_told_to_end() -> None:
    clock = TurnedClock()
    given = task(lease=lease(clock, 10))
    await clock.advance(1e6)
    assert Leases(clock).contact_left(given, 5) == math.inf
    assert Leases(clock).contact_left(task(source=""), 5) == math.inf


async def test_a_run_that_must_not_overlap_is_told_in_time_to_have_ended_by_then() -> None:
    clock = TurnedClock()
    leases = Leases(clock)
    given = task(lease=replace(lease(clock, 10), stop_after=20.0))
    assert leases.contact_left(given, 5) == 25.0
    await clock.advance(25)
    assert leases.contact_left(given, 5) == 0.0


async def test_a_renewal_leaves_what_may_be_done_without_contact_as_it_was_granted() -> None:
    clock = TurnedClock()
    leases = Leases(clock)
    given = task(lease=replace(lease(clock, 10), stop_after=20.0))
    for seconds in (30, 60):
        leases.renew(given, lease(clock, seconds))
        assert leases.contact_left(given, 0) == seconds + 20.0
