"""What an agent's word about its attempt makes of a task, purely; `lifecycle.apply` asks here."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from agent_control_plane.events import Complete, Event, Progress, Release, Renew, Run, Shift, Start
from agent_control_plane.states import FINAL, Attempt, Effect, End, State, Task, Terms
from agent_core.api.wire import Code

RETRY_DELAY: Final = 60.0  # seconds; what a retry_delay of 0 means
TIMES: Final = frozenset({"lease_expires_at", "regrant_at"})
PREEMPTED: Final = "preempted"  # the reason of a run that no retry is counted for

UNCHANGED: Final = Effect()


def lease(task: Task, now: float, terms: Terms) -> dict[str, float]:
    grace = terms.disconnect_grace if task.disconnect_grace is None else task.disconnect_grace
    until = now + terms.lease_sec
    return {"lease_expires_at": until, "regrant_at": until + grace}


def refuse(code: Code, message: str) -> Effect:
    return Effect(code=code, message=message)


def cancelled(reason: str, now: float) -> dict[str, Any]:
    words = f"cancelled: {reason}" if reason else "cancelled"
    return {"status": State.CANCELLED, "ended_at": now, "error": words, "reason": "cancelled"}


def lost(task: Task, attempt: Attempt | None, agent_id: str | None) -> Effect | None:
    """Why an agent's word about its attempt counts no more; None if the attempt is live."""
    if attempt is None or attempt.agent_id != agent_id:
        return refuse(Code.ATTEMPT_LOST, "this attempt is not known, or is another agent's")
    if attempt.end is None:
        return None
    if task.status in FINAL and task.attempt_id == attempt.id:
        return refuse(Code.TASK_FINAL, f"the task is {task.status.value}, it cannot change")
    return refuse(Code.ATTEMPT_LOST, "this attempt is over; the task may have been granted anew")


def _fence(task: Task, attempt: Attempt | None, event: Event) -> Effect | None:
    """The answer to an agent's call if its attempt is not live; None if it is."""
    refusal = lost(task, attempt, getattr(event, "agent_id", None))
    if refusal is None or attempt is None or attempt.agent_id != getattr(event, "agent_id", None):
        return refusal
    repeated = (
        (attempt.end is End.COMPLETED and isinstance(event, Start | Complete))
        or (attempt.end is End.RELEASED and isinstance(event, Release))
        or (attempt.began and task.attempt_id == attempt.id and isinstance(event, Start))
    )
    return UNCHANGED if repeated else refusal


def _live(task: Task, attempt: Attempt, now: float, terms: Terms) -> tuple[dict[str, Any], Any]:
    """Changes that renew a lease, and bring a task back that was already open to others."""
    changes: dict[str, Any] = {}
    if task.status is State.PENDING:
        changes["status"] = task.held_as or (State.RUNNING if attempt.began else State.ASSIGNED)
    return changes, lease(task, now, terms)


def _begun(task: Task, event: Start, now: float) -> tuple[dict[str, Any], dict[str, Any]]:
    changes: dict[str, Any] = {"status": State.RUNNING, "started_at": now}
    if task.due_at is not None:
        changes["due_at"] = None
    began: dict[str, Any] = {"started_at": now}
    if event.run_no:
        began |= {"run_no": event.run_no, "began_at": event.began_at}
    return changes, began


def _start(task: Task, attempt: Attempt | None, event: Start, now: float, terms: Terms) -> Effect:
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    if attempt.began and event.run_no <= attempt.run_no:
        return UNCHANGED
    if attempt.started_at is not None and attempt.run_no == 0 and event.run_no == 1:
        return UNCHANGED  # told before, without a number
    changes, began = _begun(task, event, now)
    if now >= attempt.lease_expires_at:
        if not event.behind:
            return refuse(Code.LEASE_OVER, "the lease is over; renew it first, then start again")
        began |= lease(task, now, terms)  # a sign of life, like any other
    return Effect(task=changes, attempt=began)


def _renew(
    task: Task, attempt: Attempt | None, event: Renew | Progress, now: float, terms: Terms
) -> Effect:
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    if task.cancel_requested_at is not None:
        return refuse(Code.TASK_FINAL, f"cancel requested: {task.cancel_reason or 'by a user'}")
    over = now >= attempt.lease_expires_at
    changes, renewed = _live(task, attempt, now, terms)
    if attempt.older and attempt.started_at is None:
        # Older agents renew and tell progress of what runs, and of nothing else; their start
        # may have been refused, and they do not repeat it.
        changes |= {"status": State.RUNNING, "started_at": now}
        renewed |= {"started_at": now}
    if isinstance(event, Progress):
        changes |= {"progress": event.percent, "progress_message": event.message}
        renewed = renewed if over else {k: v for k, v in renewed.items() if k not in TIMES}
    return Effect(task=changes, attempt=renewed)


def _result(event: Complete | Run, now: float) -> dict[str, Any]:
    return {
        "ended_at": now,
        "exit_code": event.exit_code,
        "signal": event.signal,
        "reason": event.reason,
        "error_code": event.error_code,
        "error": event.error,
        "usage": event.usage,
        "truncated": event.truncated,
    }


def _complete(task: Task, attempt: Attempt | None, event: Complete, now: float, _: Terms) -> Effect:
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    result = _result(event, now)
    ended = {**result, "end": End.COMPLETED, "told_at": event.told_at}
    status = event.status
    if task.cancel_requested_at is not None and status is not State.COMPLETED:
        status = State.CANCELLED
    elif status is State.FAILED and attempt.older and task.retry_count < task.max_retries:
        due = now + (task.retry_delay or RETRY_DELAY)
        again = {"status": State.PENDING, "attempt_id": None, "due_at": due}
        return Effect(task={**again, "retry_count": task.retry_count + 1}, attempt=ended)
    if task.due_at is not None:
        result["due_at"] = None
    return Effect(task={**result, "status": status}, attempt=ended)


def _run(task: Task, attempt: Attempt | None, event: Run, now: float, terms: Terms) -> Effect:
    """The attempt goes on: what ended is put on record, and the task waits for its next run."""
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    if event.run_no < attempt.run_no or (
        event.run_no == attempt.run_no and attempt.started_at is None
    ):
        return UNCHANGED  # told before
    preempted = event.reason == PREEMPTED
    changes: dict[str, Any] = {
        "status": State.PREEMPTED if preempted else State.ASSIGNED,
        "started_at": None,
        "due_at": None if preempted else event.next_run_at,  # there is no knowing when it has room
        "progress": None,
        "progress_message": "",
    }
    if not preempted:
        changes["retry_count"] = task.retry_count + 1
    after: dict[str, Any] = {"run_no": event.run_no, "started_at": None, "began_at": None}
    if now >= attempt.lease_expires_at:
        after |= lease(task, now, terms)
    record = {
        "attempt_id": attempt.id,
        "run_no": event.run_no,
        "task_id": task.id,
        "agent_id": attempt.agent_id,
        "machine_id": attempt.machine_id,
        "started_at": attempt.started_at,
        "began_at": attempt.began_at,
        "told_at": event.told_at,
        **_result(event, now),
    }
    return Effect(task=changes, attempt=after, run=record)


def _shift(task: Task, attempt: Attempt | None, event: Shift, now: float, terms: Terms) -> Effect:
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    if attempt.started_at is None:
        return refuse(Code.CONFLICT, "no run of this attempt is in progress")
    renewed = lease(task, now, terms) if now >= attempt.lease_expires_at else {}
    return Effect(task={"status": event.status}, attempt=renewed)


def _release(task: Task, attempt: Attempt | None, event: Release, now: float, _: Terms) -> Effect:
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    if attempt.began:
        return refuse(Code.CONFLICT, "the run has begun; only what has not can be given back")
    ended = {"ended_at": now, "end": End.RELEASED, "reason": event.reason}
    if task.cancel_requested_at is not None:
        return Effect(task=cancelled(task.cancel_reason, now), attempt=ended)
    return Effect(task={"status": State.PENDING, "attempt_id": None, "due_at": None}, attempt=ended)


RULES: Final[Mapping[type, Callable[..., Effect]]] = {
    Start: _start,
    Renew: _renew,
    Progress: _renew,
    Complete: _complete,
    Run: _run,
    Shift: _shift,
    Release: _release,
}
