"""The ends that are not a run's own exit, as outcomes: refused, never ran, stopped, lost."""

from dataclasses import dataclass, replace

from agent_core.api.wire import Code
from agent_core.errors import NeverRan
from agent_core.models import Outcome, Reason, Task

TIMEOUT_EXIT_CODE = 124  # as timeout(1) says it
CHAIN_LIMIT = 1000  # characters of a chain of reasons: its beginning and its end


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Somebody's word that a run is to end, and the words its record will bear."""

    reason: Reason
    code: int
    words: str


def noted(stop: Stop) -> str:
    """As it is kept with a run; what is too long loses its end."""
    return f"{stop.reason.value} {stop.code} {stop.words}"


def recalled(text: str) -> Stop | None:
    """What `noted` wrote; None if nothing was kept, or something else."""
    reason, _, rest = text.partition(" ")
    code, _, words = rest.partition(" ")
    try:
        return Stop(reason=Reason(reason), code=int(code), words=words)
    except ValueError:
        return None


def timed_out(timeout: float) -> Stop:
    words = f"timed out after {timeout:g} s"
    return Stop(reason=Reason.TIMEOUT, code=Code.TIMED_OUT, words=words)


def out_of_contact() -> Stop:
    """For work that must never overlap: it returns, and begins anew when the lease is renewed."""
    words = "stopped: there was no contact for so long that the task may be given to another agent"
    return Stop(reason=Reason.PREEMPTED, code=Code.LEASE_OVER, words=words)


def preempted() -> Stop:
    """For a run that makes room: no failure, so no code."""
    words = "made room for a more urgent task; it runs again when a slot is free"
    return Stop(reason=Reason.PREEMPTED, code=Code.OK, words=words)


def agent_left() -> Stop:
    """For an executor whose runs end with the agent."""
    words = "the agent stopped, and this executor's runs cannot go on without it"
    return Stop(reason=Reason.LOST, code=Code.LOST, words=words)


def stopped(outcome: Outcome, stop: Stop) -> Outcome:
    """How a run ended that we ended: its own exit on record, our reason in front."""
    code = TIMEOUT_EXIT_CODE if stop.reason is Reason.TIMEOUT else outcome.exit_code
    return replace(
        outcome, reason=stop.reason, exit_code=code, error_code=stop.code, error=stop.words
    )


def unbegun(stop: Stop) -> Outcome:
    """Stopped before anything ran."""
    return Outcome(reason=stop.reason, error_code=stop.code, error=stop.words)


def never_ran(error: NeverRan) -> Outcome:
    return Outcome(reason=Reason.NEVER_RAN, error_code=error.code, error=str(error))


def refused(code: int, why: str) -> Outcome:
    return Outcome(reason=Reason.REFUSED, error_code=code, error=why)


def dependency(words: str) -> Outcome:
    return Outcome(reason=Reason.DEPENDENCY, error_code=Code.DEPENDENCY, error=words)


def chain(ended: Task) -> str:
    """What is said to those that depend on it: each link names the next, the last what happened."""
    outcome = ended.outcome
    why = (outcome and outcome.error) or ended.status.value
    if outcome and outcome.exit_code is not None and not outcome.error:
        why = f"exit code {outcome.exit_code}"
    words = f"dependency {ended.id} did not complete: {why}"
    if len(words) <= CHAIN_LIMIT:
        return words
    return f"{words[: CHAIN_LIMIT // 2]} … {words[3 - CHAIN_LIMIT // 2 :]}"


def released(why: str) -> Outcome:
    return Outcome(reason=Reason.RELEASED, error=f"given back: {why}")


def lost(why: str, now: float) -> Outcome:
    """`now`: wall time, seconds since the epoch."""
    words = f"nobody can know how the run ended ({why})"
    return Outcome(reason=Reason.LOST, error_code=Code.LOST, error=words, ended_at=now)
