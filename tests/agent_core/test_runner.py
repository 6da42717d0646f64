"""One run, from its slot to its stored end, whatever executor, store and people do meanwhile."""

import asyncio
import gc
import signal
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent_core import launch as launching
from agent_core.api.wire import Code
from agent_core.child import ChildExecution
from agent_core.clock import Instant
from agent_core.endings import Stop
from agent_core.errors import Conflict, NeverRan, StoreError, StoreFull
from agent_core.execution import Execution
from agent_core.hookspecs import hookimpl
from agent_core.lifecycle import Status
from agent_core.models import (
    Launch,
    Lease,
    Lost,
    NeverStarted,
    Outcome,
    Progress,
    Reason,
    Task,
    Verdict,
)
from agent_core.runner import STARTS, Runner
from agent_core.testing.clock import TurnedClock
from agent_core.testing.executors import HandRun
from agent_core.watch import TO_KILL
from tests.agent_core.core import Core, task, until, within

CANCEL = Stop(reason=Reason.CANCELLED, code=30002, words="cancelled by Ada")


async def begin(core: Core, given: Task | None = None) -> tuple[Runner, "asyncio.Task[None]"]:
    """A runner at work on a stored task."""
    given = given or task()
    await core.add(given)
    runner = core.runner(given)
    return runner, asyncio.create_task(runner.run())


async def started(core: Core, **fields: Any) -> tuple[Runner, "asyncio.Task[None]", HandRun]:
    runner, job = await begin(core, task(**fields))
    run = await core.executor.next_run()
    await core.until_status(task(), "running")
    return runner, job, run


async def taken_up(
    core: Core, status: Status, **fields: Any
) -> tuple[Runner, "asyncio.Task[None]"]:
    """A runner for a start that an earlier life stored."""
    now = Instant.now(core.clock)
    fields = {"run_no": 1, "executor": "hand", "started_at": now} | fields
    return await begin(core, task(status=status, start_id="s1", assigned_at=now, **fields))


def known(core: Core, start_id: str = "s1") -> HandRun:
    """The executor has this run from an earlier life."""
    launch = launching.build(task(), core.bench.runs_dir, start_id=start_id)
    run = HandRun(launch, {"start": start_id}, outlives=True)
    core.executor.runs[start_id] = run
    return run


# --- the plain way


async def test_a_run_that_ends_well(core: Core) -> None:
    _, job, run = await started(core)
    running = await core.get(task())
    assert running.start_id == run.launch.start_id
    assert (running.run_no, running.executor) == (1, "hand")
    assert running.handle == {"start": running.start_id}
    assert Path(run.launch.scratch).is_dir()
    run.printed = b"hello"
    run.end()
    await within(job)
    done = await core.get(task())
    assert done.status is Status.COMPLETED
    assert done.outcome
    assert done.outcome.ended_at == pytest.approx(core.clock.wall(), abs=60)
    assert await core.events() == [("start", "t1"), ("complete", "t1")]
    assert run.forgotten
    assert not await core.rooms()


async def test_the_start_is_stored_before_anything_is_begun(core: Core) -> None:
    core.executor.gate = asyncio.Event()
    _, job = await begin(core)
    await within(core.executor.waiting.wait())
    assigned = await core.get(task())
    assert assigned.status is Status.ASSIGNED
    assert (assigned.executor, assigned.handle, assigned.run_no) == ("hand", {}, 0)
    core.executor.gate.set()
    run = await core.executor.next_run()
    assert run.launch.start_id == assigned.start_id
    run.end()
    await within(job)


async def test_the_executor_says_when_a_run_began_and_when_it_ended(core: Core) -> None:
    core.executor.started_at = Instant.now(core.clock).plus(-5)
    _, job, run = await started(core)
    assert (await core.get(task())).started_at == core.executor.started_at
    run.end(outcome=Outcome(reason=Reason.EXITED, exit_code=0, ended_at=123.0))
    await within(job)
    outcome = (await core.get(task())).outcome
    assert outcome
    assert outcome.ended_at == 123.0


async def test_a_run_that_ends_badly_without_retries_has_failed(core: Core) -> None:
    _, job, run = await started(core)
    run.end(3)
    await within(job)
    failed = await core.get(task())
    assert failed.status is Status.FAILED
    assert failed.outcome
    assert failed.outcome.exit_code == 3


async def test_a_run_that_ends_badly_with_retries_left_waits_for_another(tmp_path: Path) -> None:
    core = await Core.open(tmp_path, TurnedClock())
    _, job, run = await started(core, max_retries=2, retry_count=1, retry_delay=30.0)
    run.end(3)
    await within(job)
    waits = await core.get(task())
    assert (waits.status, waits.retry_count) == (Status.PENDING, 2)
    assert waits.due_at == core.clock.wall() + 30.0
    assert await core.events() == [("start", "t1"), ("run", "t1")]
    [before] = await core.store.runs(task().key)
    assert before.outcome.exit_code == 3
    assert run.forgotten
    await core.close()


async def test_retries_that_are_used_up_are_the_end(core: Core) -> None:
    _, job, run = await started(core, max_retries=2, retry_count=2)
    run.end(3)
    await within(job)
    assert (await core.get(task())).status is Status.FAILED


# --- judged before it starts


async def test_it_is_judged_once_more_when_its_slot_is_free(core: Core) -> None:
    core.judge.verdicts["t1"] = Verdict.deny("not on this machine")
    _, job = await begin(core)
    await within(job)
    refused = await core.get(task())
    assert refused.status is Status.FAILED
    assert refused.outcome
    assert refused.outcome.reason is Reason.REFUSED
    assert (refused.outcome.error_code, refused.outcome.error) == (
        Code.POLICY,
        "not on this machine",
    )
    assert not core.executor.runs


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"command": ""}, Code.NEVER_RAN, "the command is empty"),
        ({"unreadable": "args is an object"}, Code.INVALID, "args is an object"),
    ],
)
async def test_what_cannot_be_started_is_refused_before_anybody_judges(
    core: Core, fields: dict[str, Any], code: Code, words: str
) -> None:
    _, job = await begin(core, task(**fields))
    await within(job)
    outcome = (await core.get(task())).outcome
    assert outcome
    assert (outcome.error_code, outcome.error) == (code, words)
    assert not core.judge.asked.is_set()


async def test_a_description_of_the_wrong_types_is_refused_and_ends_nobody_else(core: Core) -> None:
    wrong: Any = 7
    await core.add(task())
    await within(core.runner(task(env={"A": wrong})).run())
    outcome = (await core.get(task())).outcome
    assert outcome
    assert outcome.error_code == Code.NEVER_RAN
    assert outcome.error.startswith("nothing can be started from its description (TypeError")


async def test_a_stop_while_it_is_judged_means_that_nothing_begins(core: Core) -> None:
    core.judge.verdicts["t1"] = gate = asyncio.Event()
    core.judge.verdicts["t1 then"] = Verdict.deny("too late to matter")
    runner, job = await begin(core)
    await within(core.judge.asked.wait())
    runner.stop(CANCEL)
    gate.set()
    await within(job)
    cancelled = await core.get(task())
    assert cancelled.status is Status.CANCELLED
    assert cancelled.start_id == ""
    assert cancelled.outcome
    assert (cancelled.outcome.error_code, cancelled.outcome.error) == (30002, CANCEL.words)


async def test_an_agent_that_leaves_while_it_is_judged_lets_it_wait(core: Core) -> None:
    core.judge.verdicts["t1"] = gate = asyncio.Event()
    runner, job = await begin(core)
    await within(core.judge.asked.wait())
    runner.leave()
    gate.set()
    await within(job)
    assert (await core.get(task())).status is Status.PENDING
    assert not core.executor.runs


# --- between the stored start and the run


@pytest.mark.parametrize("stopped", [True, False])
async def test_a_word_that_comes_while_the_start_is_stored_begins_nothing(
    core: Core, stopped: bool
) -> None:
    gate = core.store.hold("save_all")
    runner, job = await begin(core)
    await within(core.store.entered["save_all"].wait())
    runner.stop(CANCEL) if stopped else runner.leave()
    gate.set()
    await within(job)
    assert (await core.get(task())).status == ("cancelled" if stopped else "pending")
    assert not core.executor.runs
    assert not await core.rooms()


async def test_no_run_begins_when_its_lease_ended_meanwhile(tmp_path: Path) -> None:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock)
    gate = core.store.hold("save_all")
    runner, job = await begin(core, task(lease=Lease(until=Instant.now(clock).plus(5))))
    await within(core.store.entered["save_all"].wait())
    await clock.advance(6)
    gate.set()
    await within(job)
    assert runner.task.status is Status.PENDING
    assert not core.executor.runs
    await core.close()


async def test_a_start_that_never_ran_says_why(core: Core) -> None:
    core.executor.start_errors.append(NeverRan("no such program"))
    _, job = await begin(core, task(max_retries=3))
    await within(job)
    failed = await core.get(task())
    assert (failed.status, failed.run_no) == (Status.FAILED, 0)
    assert failed.outcome
    assert (failed.outcome.reason, failed.outcome.error) == (Reason.NEVER_RAN, "no such program")
    assert await core.events() == [("complete", "t1")]
    assert not await core.rooms(), "what was made for it is gone"


async def test_a_start_that_may_work_later_is_tried_later(tmp_path: Path) -> None:
    core = await Core.open(tmp_path, TurnedClock())
    core.executor.start_errors.append(NeverRan("no memory", passing=True))
    _, job = await begin(core, task(max_retries=1, retry_delay=30.0))
    await within(job)
    waits = await core.get(task())
    assert (waits.status, waits.retry_count, waits.run_no) == (Status.PENDING, 1, 0)
    assert waits.due_at == core.clock.wall() + 30
    assert await core.events() == []
    await core.close()


async def test_a_start_that_may_work_later_but_has_no_retries_left_never_ran(core: Core) -> None:
    core.executor.start_errors.append(NeverRan("no memory", passing=True))
    _, job = await begin(core)
    await within(job)
    assert (await core.get(task())).status is Status.FAILED


async def test_a_start_that_is_cancelled_and_never_ran_is_cancelled(core: Core) -> None:
    core.executor.gate = asyncio.Event()
    core.executor.start_errors.append(NeverRan("no such program"))
    runner, job = await begin(core)
    await within(core.executor.waiting.wait())
    runner.stop(CANCEL)
    core.executor.gate.set()
    await within(job)
    assert (await core.get(task())).status is Status.CANCELLED


async def test_without_room_for_its_directory_it_never_ran(core: Core) -> None:
    core.bench.runs_dir.write_text("a file where the directory should be")
    _, job = await begin(core)
    await within(job)
    outcome = (await core.get(task())).outcome
    assert outcome
    assert outcome.reason is Reason.NEVER_RAN
    assert "the private directory of the run cannot be made" in outcome.error
    assert not core.executor.runs


# --- a start that was not answered


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), TimeoutError(), KeyError("bug")])
async def test_a_start_whose_answer_is_missing_is_looked_for_and_never_begun_twice(
    core: Core, error: Exception
) -> None:
    core.executor.start_errors.append(error)
    core.executor.began_anyway = True
    _, job, run = await started(core)
    assert core.executor.asked == [(run.launch.start_id, False)]
    run.end()
    await within(job)
    assert (await core.get(task())).status is Status.COMPLETED
    assert len(core.executor.runs) == 1
    assert await core.events() == [("start", "t1"), ("complete", "t1")]


async def test_a_start_whose_answer_is_missing_and_that_began_nothing_is_begun_anew(
    core: Core,
) -> None:
    core.executor.start_errors.extend([ConnectionResetError("gone")] * (STARTS - 1))
    _, job, run = await started(core)
    assert len(core.executor.asked) == STARTS - 1
    ids = {start for start, _ in core.executor.asked}
    assert len(ids) == STARTS - 1, "each try is a start of its own"
    assert run.launch.start_id not in ids
    assert run.launch.run_no == 1, "what never ran burns no number"
    run.end()
    await within(job)
    assert (await core.get(task())).run_no == 1


async def test_an_executor_that_goes_on_failing_ends_the_task_with_its_words(core: Core) -> None:
    core.executor.start_errors.extend([KeyError("bug")] * 50)
    _, job = await begin(core)
    await within(job)
    failed = await core.get(task())
    assert failed.status is Status.FAILED
    assert failed.outcome
    assert failed.outcome.reason is Reason.NEVER_RAN
    assert "failed 3 times to start it, the last time so: KeyError: 'bug'" in failed.outcome.error
    assert len(core.executor.start_errors) == 50 - STARTS


@pytest.mark.parametrize("stopped", [True, False])
async def test_between_two_tries_a_word_is_heard(core: Core, stopped: bool) -> None:
    core.executor.start_errors.append(KeyError("bug"))
    core.executor.gate = asyncio.Event()
    runner, job = await begin(core)
    await within(core.executor.waiting.wait())
    runner.stop(CANCEL) if stopped else runner.leave()
    core.executor.gate.set()
    await within(job)
    found = await core.get(task())
    # Who leaves does not ask what became of it: the next start of the agent does.
    assert found.status == ("cancelled" if stopped else "assigned")
    assert not core.executor.runs


async def test_a_start_whose_fate_nobody_can_know_is_lost_and_counts_as_a_run(core: Core) -> None:
    core.executor.start_errors.append(ConnectionResetError("gone"))
    core.executor.answers.append(Lost(reason="the journal is gone"))
    _, job = await begin(core)
    await within(job)
    lost = await core.get(task())
    assert (lost.status, lost.run_no) == (Status.FAILED, 1)
    assert lost.started_at == lost.assigned_at
    assert lost.outcome
    assert lost.outcome.reason is Reason.LOST
    assert "ConnectionResetError: gone: the journal is gone" in lost.outcome.error
    assert await core.events() == [("start", "t1"), ("complete", "t1")]


# --- taken up after a restart


async def test_a_running_task_is_found_again_and_followed_to_its_end(core: Core) -> None:
    run = known(core)
    _, job = await taken_up(core, Status.RUNNING)
    run.end()
    await within(job)
    assert (await core.get(task())).status is Status.COMPLETED
    assert core.executor.asked == [("s1", True)]
    assert await core.events() == [("complete", "t1")]
    assert run.forgotten


async def test_a_start_that_had_begun_unseen_is_found_and_begins_now(core: Core) -> None:
    run = known(core)
    run.started_at = Instant.now(core.clock).plus(-7)
    _, job = await taken_up(core, Status.ASSIGNED, run_no=0, started_at=None)
    running = await core.until_status(task(), "running")
    assert (running.run_no, running.executor, running.started_at) == (1, "hand", run.started_at)
    run.end()
    await within(job)
    assert await core.events() == [("start", "t1"), ("complete", "t1")]


async def test_a_start_that_never_began_waits_again_with_its_number(core: Core) -> None:
    _, job = await taken_up(core, Status.ASSIGNED, run_no=0)
    await within(job)
    waits = await core.get(task())
    assert (waits.status, waits.run_no) == (Status.PENDING, 0)
    assert core.executor.asked == [("s1", False)]
    assert not core.executor.runs, "the slot decides when it starts, not the recovery"


async def test_a_running_task_that_its_executor_does_not_know_is_lost_not_run_again(
    core: Core,
) -> None:
    _, job = await taken_up(core, Status.RUNNING)
    await within(job)
    lost = await core.get(task())
    assert lost.status is Status.FAILED
    assert lost.outcome
    assert lost.outcome.reason is Reason.LOST
    assert "the agent was restarted: its executor knows nothing of this run" in lost.outcome.error


async def test_a_lost_run_with_retries_left_follows_the_same_policy(core: Core) -> None:
    core.executor.answers.append(Lost(reason="rebooted"))
    _, job = await taken_up(core, Status.RUNNING, max_retries=1, retry_delay=0.0)
    await within(job)
    assert (await core.get(task())).status is Status.PENDING
    [run] = await core.store.runs(task().key)
    assert run.outcome.reason is Reason.LOST


async def test_a_run_that_ended_while_nobody_looked_keeps_its_end_though_its_time_is_over(
    core: Core,
) -> None:
    run = known(core)
    run.end(0)
    long_ago = Instant.now(core.clock).plus(-500)
    _, job = await taken_up(core, Status.RUNNING, started_at=long_ago, timeout=10.0)
    await within(job)
    assert (await core.get(task())).status is Status.COMPLETED
    assert run.signals == []


async def test_a_preempted_task_returns_to_those_that_wait(core: Core) -> None:
    _, job = await taken_up(core, Status.PREEMPTED)
    await within(job)
    assert (await core.get(task())).status is Status.PENDING
    assert core.executor.asked == []


async def test_a_stop_for_a_start_that_never_began_is_heard_after_a_restart(core: Core) -> None:
    core.executor.gate = asyncio.Event()
    runner, job = await taken_up(core, Status.ASSIGNED, run_no=0)
    await within(core.executor.waiting.wait())
    runner.stop(CANCEL)
    core.executor.gate.set()
    await within(job)
    assert (await core.get(task())).status is Status.CANCELLED


# --- stopped


async def test_a_cancelled_run_is_asked_to_end_and_says_why(core: Core) -> None:
    runner, job, run = await started(core, max_retries=5)
    runner.stop(CANCEL)
    runner.stop(replace(CANCEL, words="the second word does not count"))
    await within(job)
    assert run.signals == [signal.SIGTERM]
    cancelled = await core.get(task())
    assert cancelled.status is Status.CANCELLED
    assert cancelled.outcome
    assert (cancelled.outcome.exit_code, cancelled.outcome.signal) == (143, "SIGTERM")
    assert (cancelled.outcome.error_code, cancelled.outcome.error) == (30002, CANCEL.words)


async def test_a_run_that_does_not_heed_is_killed_after_its_grace(core: Core) -> None:
    runner, job, run = await started(core)
    run.deaf = True
    runner.stop(CANCEL)
    await within(job)
    assert run.signals == [signal.SIGTERM, signal.SIGKILL]
    assert (await core.get(task())).status is Status.CANCELLED


async def test_within_its_grace_a_run_is_not_killed(core: Core) -> None:
    runner, job, run = await started(core)
    run.deaf = True
    run.grace = 60.0
    runner.stop(CANCEL)
    await run.signalled()
    run.end(0)
    await within(job)
    assert run.signals == [signal.SIGTERM]
    cancelled = await core.get(task())
    assert cancelled.status is Status.CANCELLED
    assert cancelled.outcome
    assert cancelled.outcome.exit_code == 0


async def test_an_exit_of_its_own_before_the_signal_counts(core: Core) -> None:
    runner, job, run = await started(core)
    run.end(0)
    runner.stop(CANCEL)  # both are noticed in the same turn
    await within(job)
    assert (await core.get(task())).status is Status.COMPLETED
    assert run.signals == []


async def test_a_run_that_was_seen_to_end_is_sent_nothing(core: Core) -> None:
    """The word comes between its end and the moment when its runner looks up."""
    runner: Runner

    class Ends(HandRun):
        async def wait(self) -> Outcome:
            outcome = await super().wait()
            runner.stop(CANCEL)
            return outcome

        async def signal(self, signum: int) -> bool:
            self.signals.append(signum)
            return True

    run = known(core)
    run.__class__ = Ends
    runner, job = await taken_up(core, Status.RUNNING)
    run.end(0)
    await within(job)
    assert run.signals == []
    assert (await core.get(task())).status is Status.COMPLETED


async def test_a_signal_that_came_too_late_changes_nothing(core: Core) -> None:
    class Late(HandRun):
        async def signal(self, signum: int) -> bool:
            self.signals.append(signum)
            self.end(0)
            return False

    runner, job, run = await started(core)
    run.__class__ = Late
    runner.stop(CANCEL)
    await within(job)
    assert run.signals == [signal.SIGTERM]
    assert (await core.get(task())).status is Status.COMPLETED


async def test_a_run_over_its_time_is_ended_and_may_be_tried_again(core: Core) -> None:
    core.executor.started_at = Instant.now(core.clock).plus(-100)
    _, job = await begin(core, task(timeout=99.5, max_retries=1))
    run = await core.executor.next_run()
    await within(job)
    assert run.signals == [signal.SIGTERM]
    assert (await core.get(task())).status is Status.PENDING
    [before] = await core.store.runs(task().key)
    assert (before.outcome.reason, before.outcome.exit_code) == (Reason.TIMEOUT, 124)
    assert before.outcome.error == "timed out after 99.5 s"


async def test_a_timeout_comes_by_itself(core: Core) -> None:
    _, job = await begin(core, task(timeout=0.05))
    run = await core.executor.next_run()
    await within(job)
    assert run.signals == [signal.SIGTERM]
    failed = await core.get(task())
    assert failed.outcome
    assert failed.outcome.error_code == Code.TIMED_OUT


async def test_a_stop_that_comes_when_the_run_has_ended_still_prevents_the_next_run(
    core: Core,
) -> None:
    runner, job, run = await started(core, max_retries=5)
    gate = core.store.hold("save_all")
    run.end(3)
    await within(core.store.entered["save_all"].wait())
    runner.stop(CANCEL)
    gate.set()
    await within(job)
    cancelled = await core.get(task())
    assert cancelled.status is Status.CANCELLED
    assert await core.events() == [("start", "t1"), ("run", "t1"), ("complete", "t1")]
    [before] = await core.store.runs(task().key)
    assert before.outcome.exit_code == 3, "what the run did stays on record"


# --- the agent leaves


async def test_a_run_that_outlives_the_agent_is_left_alone(core: Core) -> None:
    runner, job, run = await started(core)
    runner.leave()
    await within(job)
    assert (await core.get(task())).status is Status.RUNNING
    assert (run.signals, run.forgotten) == ([], False)
    assert Path(run.launch.scratch).is_dir()


async def test_a_run_that_cannot_outlive_the_agent_is_ended_and_said_to_be_lost(core: Core) -> None:
    core.executor.outlives = False
    runner, job, run = await started(core)
    runner.leave()
    await within(job)
    assert run.signals == [signal.SIGTERM]
    failed = await core.get(task())
    assert failed.status is Status.FAILED
    assert failed.outcome
    assert (failed.outcome.reason, failed.outcome.error_code) == (Reason.LOST, Code.LOST)
    assert failed.outcome.exit_code == 143


async def test_a_stop_that_came_before_the_leaving_is_carried_out(core: Core) -> None:
    runner, job, run = await started(core)
    runner.stop(CANCEL)
    runner.leave()
    await within(job)
    assert run.signals == [signal.SIGTERM]
    assert (await core.get(task())).status is Status.CANCELLED


async def test_leaving_while_a_run_is_looked_for_leaves_it_to_the_next_start(core: Core) -> None:
    core.executor.answers.extend([ConnectionRefusedError("supervisor away")] * 10_000)
    runner, job = await taken_up(core, Status.RUNNING)
    await until(lambda: len(core.executor.asked) > 2)
    runner.leave()
    await within(job)
    assert (await core.get(task())).status is Status.RUNNING


async def test_a_runner_that_is_cancelled_writes_nothing(core: Core) -> None:
    _, job, run = await started(core)
    job.cancel()
    await asyncio.wait({job})
    assert (await core.get(task())).status is Status.RUNNING
    assert run.signals == []


# --- executors that fail


async def test_an_executor_that_loses_sight_of_a_run_is_asked_again(core: Core) -> None:
    _, job, run = await started(core)
    run.fail("signal", OSError("link broken"))
    again = HandRun(run.launch, run.handle, outlives=True)
    core.executor.answers.extend([OSError("still away"), again])
    run._ended.set_exception(OSError("link broken"))
    again.end(0)
    await within(job)
    assert (await core.get(task())).status is Status.COMPLETED
    assert len(core.executor.asked) == 2
    assert again.forgotten


async def test_a_run_that_is_lost_while_it_is_followed(core: Core) -> None:
    _, job, run = await started(core)
    core.executor.answers.append(Lost(reason="killed with the supervisor"))
    run._ended.set_exception(OSError("link broken"))
    await within(job)
    lost = await core.get(task())
    assert lost.outcome
    assert lost.outcome.reason is Reason.LOST
    assert "OSError: link broken: killed with the supervisor" in lost.outcome.error


async def test_a_wait_that_fails_a_thousand_times_ends_nothing_else(core: Core) -> None:
    """Once each failure was a call deeper, until the stack was full and the agent ended."""
    _, job, run = await started(core)
    run.fail("wait", *[OSError("again") for _ in range(1200)])
    run._ended.set_exception(OSError("link broken"))
    core.executor.runs[run.launch.start_id] = again = HandRun(run.launch, {}, outlives=True)
    again.fail("wait", *[OSError("again") for _ in range(1200)])
    again.end(0)
    await asyncio.wait_for(job, 60)
    assert (await core.get(task())).status is Status.COMPLETED


async def test_a_wait_that_answers_with_nothing_is_no_end(core: Core) -> None:
    nothing: Any = None
    _, job, run = await started(core)
    core.executor.runs[run.launch.start_id] = again = HandRun(run.launch, {}, outlives=True)
    run._ended.set_result(nothing)
    again.end(0)
    await within(job)
    assert (await core.get(task())).status is Status.COMPLETED


async def test_a_signal_that_fails_is_sent_again_to_the_run_that_is_found(core: Core) -> None:
    runner, job, run = await started(core)
    run.fail("signal", OSError("link broken"))
    runner.stop(CANCEL)
    await within(job)
    assert run.signals == [signal.SIGTERM]
    assert (await core.get(task())).status is Status.CANCELLED


async def test_a_signal_and_a_wait_that_fail_together_leave_no_warning(core: Core) -> None:
    class Both(HandRun):
        async def signal(self, signum: int) -> bool:
            self._ended.set_exception(OSError("broken too"))
            await asyncio.sleep(0.01)
            raise OSError("broken")

    unseen: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    runner, job, run = await started(core)
    run.__class__ = Both
    core.executor.answers.append(Lost(reason="gone"))
    runner.stop(CANCEL)
    await within(job)
    del run
    core.executor.runs.clear()
    gc.collect()
    assert unseen == []
    lost = await core.get(task())
    assert lost.outcome
    assert "OSError: broken: gone" in lost.outcome.error


async def test_a_failure_to_forget_changes_no_end(core: Core) -> None:
    _, job, run = await started(core)
    run.fail("forget", OSError("link broken"))
    run.end(0)
    await within(job)
    assert (await core.get(task())).status is Status.COMPLETED
    assert not await core.rooms()


async def test_a_task_that_left_a_tree_in_its_directory_leaves_nothing(core: Core) -> None:
    _, job, run = await started(core)
    Path(run.launch.scratch, "deep").mkdir()
    Path(run.launch.progress, "deep").mkdir(parents=True)
    run.end(0)
    await within(job)
    assert await core.rooms() == []


# --- a store that fails


@pytest.mark.parametrize("moves_before", [0, 1, 2])
async def test_a_full_disk_delays_each_move_and_loses_none(core: Core, moves_before: int) -> None:
    """The start, the begin, the end: each is asked until it is kept, alone or with the next."""
    core.store.fail("save_all", *[None] * moves_before, StoreFull("no room"), StoreError("locked"))
    _, job = await begin(core)
    run = await core.executor.next_run()
    if moves_before == 2:
        await core.until_status(task(), "running")
    run.end(0)
    await within(job)
    assert (await core.get(task())).status is Status.COMPLETED
    assert await core.events() == [("start", "t1"), ("complete", "t1")]
    kept = core.store.calls.count("save_all") - 2
    assert 2 <= kept <= 4
    assert len(core.executor.runs) == 1


async def test_nothing_is_forgotten_before_its_end_is_kept(core: Core) -> None:
    _, job, run = await started(core)
    gate = core.store.hold("save_all", before=True)
    run.end(0)
    await within(core.store.entered["save_all"].wait())
    assert not run.forgotten
    assert Path(run.launch.scratch).is_dir()
    gate.set()
    await within(job)
    assert run.forgotten


async def test_a_task_that_somebody_else_moved_is_not_moved_again(core: Core) -> None:
    _, job, run = await started(core)
    running = await core.get(task())
    await core.store.save(running, {"status": Status.CANCELLED})
    run.end(0)
    with pytest.raises(Conflict):
        await within(job)
    assert (await core.get(task())).status is Status.CANCELLED


# --- how far it is


async def test_progress_is_read_from_the_file_at_most_once_a_second(tmp_path: Path) -> None:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock)
    runner, job = await begin(core)
    assert runner.reader is None, "nothing runs yet"
    run = await core.executor.next_run()
    await core.until_status(task(), "running")
    file = Path(run.launch.progress)
    file.write_text("10 loading\n")
    assert await runner.reader.now() == Progress(percent=10, message="loading")
    file.write_text("20 training\n")
    assert await runner.reader.now() == Progress(percent=10, message="loading")
    await clock.advance(1)
    assert await runner.reader.now() == Progress(percent=20, message="training")
    run.end()
    await within(job)
    await core.close()


async def test_without_words_of_its_own_the_last_line_of_output_is_the_message(core: Core) -> None:
    runner, job, run = await started(core)
    Path(run.launch.progress).write_text("30\n")
    run.printed = b"epoch 1\nepoch 2\n"
    assert await runner.reader.now() == Progress(percent=30, message="epoch 2")
    run.end()
    await within(job)


async def test_output_that_cannot_be_read_hides_no_percent(core: Core) -> None:
    runner, job, run = await started(core)
    Path(run.launch.progress).write_text("30\n")
    run.fail("tail", OSError("link broken"))
    assert await runner.reader.now() == Progress(percent=30)
    run.end()
    await within(job)


async def test_a_run_without_progress_and_output_invents_none(core: Core) -> None:
    runner, job, run = await started(core)
    assert await runner.reader.now() == Progress()
    run.end()
    await within(job)


# --- with real processes


class Shell:
    """A third party's executor in its shortest form: a child of the agent."""

    @hookimpl
    def execute(self, launch: Launch) -> Awaitable[Execution]:
        return ChildExecution.start(launch, env={**launch.env, "PATH": "/usr/bin:/bin"})

    @hookimpl
    async def reattach(self, launch: Launch, running: bool) -> NeverStarted | Lost:
        return ChildExecution.recall(launch, running=running)


async def shell(directory: Path, given: Task) -> tuple[Core, Runner, "asyncio.Task[None]"]:
    core = await Core.open(directory, shell=Shell())
    runner, job = await begin(core, given)
    return core, runner, job


async def test_a_process_runs_in_its_own_directory_and_its_end_is_kept(tmp_path: Path) -> None:
    script = 'pwd; echo "$REMOTEGPU_RUN_NO" >&2; touch left; exit 5'
    core, _, job = await shell(tmp_path, task(command=script, max_retries=1, retry_delay=9.0))
    await within(job)
    [run] = await core.store.runs(task().key)
    waits = await core.get(task())
    assert (waits.status, waits.run_no, waits.executor) == (Status.PENDING, 1, "shell")
    assert run.outcome.exit_code == 5
    assert run.outcome.stdout.decode().strip() == str(core.bench.runs_dir / waits.start_id)
    assert run.outcome.stderr == b"1\n"
    assert await core.rooms() == []
    await core.close()


async def test_a_process_says_how_far_it_is_and_is_ended_with_its_children(tmp_path: Path) -> None:
    script = 'sleep 1000 & echo "42 waiting" > "$REMOTEGPU_PROGRESS"; wait'
    core, runner, job = await shell(tmp_path, task(command=script))
    await core.until_status(task(), "running")
    progress = Path(core.bench.runs_dir, f"{runner.task.start_id}.progress")
    await until(lambda: progress.exists() and progress.stat().st_size > 0)
    assert await runner.reader.now() == Progress(percent=42, message="waiting")
    runner.stop(CANCEL)
    await within(job)
    cancelled = await core.get(task())
    assert cancelled.status is Status.CANCELLED
    assert cancelled.outcome
    assert (cancelled.outcome.exit_code, cancelled.outcome.signal) == (143, "SIGTERM")
    await core.close()


async def test_a_script_is_run_by_its_own_first_line(tmp_path: Path) -> None:
    core, _, job = await shell(tmp_path, task(command="#!/bin/sh -e\necho $-\n", type="script"))
    await within(job)
    done = await core.get(task())
    assert done.outcome
    assert "e" in done.outcome.stdout.decode()
    assert await core.rooms() == []
    await core.close()


async def test_a_program_that_is_missing_never_ran(tmp_path: Path) -> None:
    core, _, job = await shell(tmp_path, task(command="/no/such/program", exec=True))
    await within(job)
    failed = await core.get(task())
    assert (failed.status, failed.run_no) == (Status.FAILED, 0)
    assert failed.outcome
    assert failed.outcome.reason is Reason.NEVER_RAN
    assert "/no/such/program" in failed.outcome.error
    await core.close()


async def test_processes_of_an_agent_that_leaves_end_with_it(tmp_path: Path) -> None:
    core, runner, job = await shell(tmp_path, task(command="exec sleep 1000"))
    await core.until_status(task(), "running")
    runner.leave()
    await within(job)
    failed = await core.get(task())
    assert failed.outcome
    assert (failed.outcome.reason, failed.outcome.signal) == (Reason.LOST, "SIGTERM")
    await core.close()


# --- without contact


async def test_a_run_that_must_not_overlap_ends_without_contact_and_waits_for_its_lease(
    core: Core,
) -> None:
    lease = Lease(until=Instant.now(core.clock).plus(0.3), stop_after=0.01 + TO_KILL)
    given = task(lease=lease)
    _, job = await begin(core, given)
    run = await core.executor.next_run()
    assert await run.signalled() == signal.SIGTERM
    await within(job)
    waits = await core.get(given)
    assert (waits.status, waits.retry_count) == (Status.PENDING, 0)
    assert core.bench.leases.over(waits), "it begins again only when it is renewed"
    [ended] = await core.store.runs(given.key)
    assert ended.outcome.reason is Reason.PREEMPTED
    assert "no contact" in ended.outcome.error
    assert await core.events() == [("start", "t1"), ("run", "t1")]


async def test_a_run_whose_lease_is_over_goes_on_where_it_may(core: Core) -> None:
    given = task(lease=Lease(until=Instant.now(core.clock).plus(0.2)))
    _, job = await begin(core, given)
    run = await core.executor.next_run()
    await core.until_status(given, "running")
    await until(lambda: core.bench.leases.over(given))
    run.end(0)
    await within(job)
    assert (await core.get(given)).status is Status.COMPLETED
    assert run.signals == []
