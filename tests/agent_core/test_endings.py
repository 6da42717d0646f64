"""The ends that are not a run's own exit."""

from agent_core import endings
from agent_core.api.wire import Code
from agent_core.endings import Stop
from agent_core.errors import NeverRan
from agent_core.models import Outcome, Reason


def test_a_timeout_bears_the_code_of_timeout_and_its_own_words() -> None:
    ended = Outcome(reason=Reason.SIGNAL, exit_code=143, signal="SIGTERM", stdout=b"x")
    outcome = endings.stopped(ended, endings.timed_out(90.0))
    assert outcome.reason is Reason.TIMEOUT
    assert (outcome.exit_code, outcome.signal, outcome.stdout) == (124, "SIGTERM", b"x")
    assert (outcome.error_code, outcome.error) == (Code.TIMED_OUT, "timed out after 90 s")


def test_a_cancelled_run_keeps_its_own_exit_on_record() -> None:
    ended = Outcome(reason=Reason.EXITED, exit_code=0)
    stop = Stop(reason=Reason.CANCELLED, code=30002, words="by Ada")
    outcome = endings.stopped(ended, stop)
    assert (outcome.reason, outcome.exit_code) == (Reason.CANCELLED, 0)
    assert (outcome.error_code, outcome.error) == (30002, "by Ada")
    assert not outcome.success


def test_why_a_run_is_ended_is_read_as_it_was_noted() -> None:
    for stop in (
        endings.timed_out(3),
        endings.preempted(),
        Stop(reason=Reason.CANCELLED, code=7, words="two  spaces\n\U0001f600"),
        Stop(reason=Reason.CANCELLED, code=7, words=""),
    ):
        assert endings.recalled(endings.noted(stop)) == stop
    for nothing in ("", "cancelled", "cancelled seven x", "bored 7 x"):
        assert endings.recalled(nothing) is None


def test_what_never_began_has_no_exit_code() -> None:
    stop = Stop(reason=Reason.CANCELLED, code=7, words="no")
    refused = endings.refused(Code.POLICY, "no such program")
    never = endings.never_ran(NeverRan("no room"))
    for outcome, reason, code, words in [
        (endings.unbegun(stop), Reason.CANCELLED, 7, "no"),
        (refused, Reason.REFUSED, Code.POLICY, "no such program"),
        (never, Reason.NEVER_RAN, Code.NEVER_RAN, "no room"),
        (
            endings.released("the agent stops"),
            Reason.RELEASED,
            Code.OK,
            "given back: the agent stops",
        ),
    ]:
        assert (outcome.reason, outcome.error_code, outcome.error) == (reason, code, words)
        assert outcome.exit_code is None
        assert not outcome.success


def test_lost_is_told_as_lost_and_never_guessed() -> None:
    outcome = endings.lost("the supervisor was killed", 5.0)
    assert (outcome.reason, outcome.error_code, outcome.ended_at) == (Reason.LOST, Code.LOST, 5.0)
    assert outcome.exit_code is None
    assert "(the supervisor was killed)" in outcome.error
    assert endings.agent_left().reason is Reason.LOST
    assert endings.agent_left().code == Code.LOST
