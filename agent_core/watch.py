"""A run in progress, until it ends by itself, by a stop, by its timeout, or is left to go on."""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass

from agent_core import endings
from agent_core.clock import Clock, Instant
from agent_core.endings import Stop
from agent_core.errors import PluginError
from agent_core.execution import Execution
from agent_core.log import get
from agent_core.models import Outcome, Reason
from agent_core.signals import Bell

LONGEST_WAIT = 60.0  # seconds; then the timeout is looked at again, for machines that slept
KILL_AGAIN = 5.0  # seconds between two KILLs to a tree that does not end
TICK = 0.05  # seconds that two clocks of one run's beginning may differ by
TO_KILL = 2.0  # seconds in which a tree is gone after KILL, before another may begin elsewhere
LET_GO = 5.0  # seconds for an executor's wait to end once it was cancelled


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """What is watched, and by whose word it may end."""

    execution: Execution
    timeout: float  # seconds
    started_at: Instant
    clock: Clock
    # Seconds until it must be told to end for want of contact, if ending takes so many seconds.
    contact_left: Callable[[float], float]
    begun: "asyncio.Future[None] | None"  # that it runs is stored; fails if that cannot be
    called: "asyncio.Future[None]"  # a stop was named, or the agent leaves
    stop: Callable[[], Stop | None]  # the one that was named
    ending: Callable[[], None] = lambda: None  # called when it was told to end


async def outcome_of(watch: Watch) -> Outcome | None:
    """How it ended, with the reason if that was ours. None: it goes on without this agent.

    Raises whatever its executor raises, PluginError for an answer that is no Outcome, and Conflict
    if the task was moved by somebody else when it began.
    """
    waiter = watch.execution.outcome()
    try:
        told = watch.execution.terminated
        if told and (former := endings.recalled(told)):  # by an agent that was killed
            await _end(watch, waiter, former)
            return endings.stopped(_checked(await waiter), former)
        stop = await _ended_or_stopped(watch, waiter)
        if stop is None and not waiter.done():
            if watch.execution.survives:
                return None
            stop = endings.agent_left()
        # Its own end was seen before a signal was sent: that counts.
        if stop is None or waiter.done() or not await _end(watch, waiter, stop):
            return _late(_checked(await waiter), watch.timeout)
        return endings.stopped(_checked(await waiter), stop)
    finally:
        if not waiter.done():
            waiter.cancel()
            await asyncio.wait({waiter}, timeout=LET_GO)
        if waiter.done() and not waiter.cancelled():
            waiter.exception()  # seen, where a signal's error was raised before it


def _late(outcome: Outcome, timeout: float) -> Outcome:
    """An agent that was killed after its TERM may have left no word of it.

    A run that a signal ended when its time was over was ended for that.
    """
    ran_for = (outcome.usage and outcome.usage.wall_s) or 0.0
    if outcome.reason is not Reason.SIGNAL or ran_for + TICK < timeout:
        return outcome
    return endings.stopped(outcome, endings.timed_out(timeout))


def _checked(outcome: Outcome) -> Outcome:
    if not isinstance(outcome, Outcome):
        raise PluginError(f"wait must answer with an Outcome, not {type(outcome).__name__}")
    return outcome


async def _ended_or_stopped(watch: Watch, waiter: "asyncio.Future[Outcome]") -> Stop | None:
    """Wait for the run's end (None), a stop, its timeout, lost contact, or our leaving (None)."""
    begun = watch.begun
    bell = Bell()
    waiter.add_done_callback(bell.ring)
    watch.called.add_done_callback(bell.ring)
    if begun:
        begun.add_done_callback(bell.ring)
    while not waiter.done() and not watch.called.done():
        left = watch.timeout - watch.started_at.age(watch.clock)
        if left <= 0:
            return endings.timed_out(watch.timeout)
        contact = watch.contact_left(watch.execution.grace + TO_KILL)
        if contact <= 0:
            return endings.out_of_contact()
        if begun and begun.done():
            begun.result()
            begun = None
        await bell.rings(min(left, contact, LONGEST_WAIT))
    return watch.stop()


async def _end(watch: Watch, waiter: "asyncio.Future[Outcome]", stop: Stop) -> bool:
    """TERM, grace, KILL, until nothing is left. False if it had ended by itself."""
    execution = watch.execution
    watch.ending()
    if not await execution.terminate(endings.noted(stop)):
        return False
    get("runner").info("ending a run", why=stop.words)
    await asyncio.wait({waiter}, timeout=execution.grace)
    while not waiter.done():
        await execution.signal(signal.SIGKILL)
        await asyncio.wait({waiter}, timeout=KILL_AGAIN)
    return True
