"""The life of a task on the server: what an event makes of a task and its attempt, purely.

A task is `pending` until an agent is granted an attempt at it (`assigned`), `running` from that
attempt's start, and final at its end. An attempt whose lease and grace are both over leaves the
task `pending` and open to a new grant, but is not ended: until that grant it can still come back.

    an attempt is not ended  <=>  its task's attempt_id names it and its task is not final
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from agent_control_plane.events import (
    Cancel,
    Complete,
    Describe,
    Event,
    Grant,
    Progress,
    Release,
    Renew,
    Start,
    Tick,
)
from agent_control_plane.states import FINAL, HELD, Attempt, Effect, End, State, Task, Terms
from agent_core.api.wire import Code

RETRY_DELAY: Final = 60.0  # seconds; what a retry_delay of 0 means
_TIMES: Final = frozenset({"lease_expires_at", "regrant_at"})

UNCHANGED: Final = Effect()


def apply(task: Task, attempt: Attempt | None, event: Event, now: float, terms: Terms) -> Effect:
    """The one place where a task changes. `attempt` is the one that the event names.

    For Grant, Cancel and Tick it is the task's own, if it has one.
    """
    effect = _RULES[type(event)](task, attempt, event, now, terms)
    if not effect.task and not effect.attempt:
        return effect
    after = replace(task, **{k: v for k, v in effect.task.items() if k in Task.__slots__})
    if isinstance(event, Grant):
        attempt = granted(task, event, now, terms)
    elif attempt is not None:
        times = {key: value for key, value in effect.attempt.items() if key in _TIMES}
        attempt = replace(attempt, **times)
    derived = _derive(after, attempt)
    changed = {key: value for key, value in derived.items() if getattr(task, key) != value}
    return replace(effect, task={**effect.task, **changed})


def granted(task: Task, event: Grant, now: float, terms: Terms) -> Attempt:
    """The attempt that a Grant makes."""
    lease = _lease(task, now, terms)
    return Attempt(
        id=event.attempt_id,
        agent_id=event.agent_id,
        older=event.older,
        started_at=None,
        ended_at=None,
        end=None,
        **lease,
    )


def _derive(task: Task, attempt: Attempt | None) -> dict[str, Any]:
    """The claim's and the sweep's conditions, written nowhere else."""
    if task.status is State.PENDING and task.due_at is None:
        return {"ready_for": task.machine_id, "wake_at": None}
    if task.status is State.PENDING:
        return {"ready_for": None, "wake_at": task.due_at}
    if task.status in FINAL or attempt is None:
        return {"ready_for": None, "wake_at": None}
    ends = attempt.lease_expires_at if task.cancel_requested_at is not None else attempt.regrant_at
    return {"ready_for": None, "wake_at": ends}


def _lease(task: Task, now: float, terms: Terms) -> dict[str, float]:
    grace = terms.disconnect_grace if task.disconnect_grace is None else task.disconnect_grace
    until = now + terms.lease_sec
    return {"lease_expires_at": until, "regrant_at": until + grace}


def _fence(task: Task, attempt: Attempt | None, event: Event) -> Effect | None:
    """The answer to an agent's call if its attempt is not live; None if it is."""
    if attempt is None or attempt.agent_id != getattr(event, "agent_id", None):
        return _refuse(Code.ATTEMPT_LOST, "this attempt is not known, or is another agent's")
    if attempt.end is None:
        return None
    repeated = (
        (attempt.end is End.COMPLETED and isinstance(event, Start | Complete))
        or (attempt.end is End.RELEASED and isinstance(event, Release))
        or (attempt.started_at is not None and task.attempt_id == attempt.id and _is_start(event))
    )
    if repeated:
        return UNCHANGED
    if task.status in FINAL and task.attempt_id == attempt.id:
        return _refuse(Code.TASK_FINAL, f"the task is {task.status.value}, it cannot change")
    return _refuse(Code.ATTEMPT_LOST, "this attempt is over; the task may have been granted anew")


def _is_start(event: Event) -> bool:
    return isinstance(event, Start)


def _grant(task: Task, attempt: Attempt | None, event: Grant, now: float, terms: Terms) -> Effect:
    if task.ready_for not in ("", event.machine_id):
        return _refuse(Code.CONFLICT, "the task is not free for this machine")
    began = attempt is not None and attempt.started_at is not None  # and lost, or it were not free
    changes: dict[str, Any] = {
        "status": State.ASSIGNED,
        "attempt_id": event.attempt_id,
        "assigned_agent_id": event.agent_id,
        "assigned_machine_id": event.machine_id,
        "assigned_at": now,
        "started_at": None,
        "due_at": None,
        "progress": None,
        "progress_message": "",
    }
    if began:
        changes["lost_attempts"] = task.lost_attempts + 1
    return Effect(task=changes, attempt={"ended_at": now, "end": End.SUPERSEDED} if attempt else {})


def _live(task: Task, attempt: Attempt, now: float, terms: Terms) -> tuple[dict[str, Any], Any]:
    """Changes that renew a lease, and bring a task back that was already open to others."""
    status = State.ASSIGNED if attempt.started_at is None else State.RUNNING
    changes = {"status": status} if task.status is State.PENDING else {}
    return changes, _lease(task, now, terms)


def _start(task: Task, attempt: Attempt | None, event: Start, now: float, _: Terms) -> Effect:
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    if attempt.started_at is not None:
        return UNCHANGED
    if now >= attempt.lease_expires_at:
        return _refuse(Code.LEASE_OVER, "the lease is over; renew it first, then start again")
    return Effect(task={"status": State.RUNNING, "started_at": now}, attempt={"started_at": now})


def _renew(
    task: Task, attempt: Attempt | None, event: Renew | Progress, now: float, terms: Terms
) -> Effect:
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    if task.cancel_requested_at is not None:
        return _refuse(Code.TASK_FINAL, f"cancel requested: {task.cancel_reason or 'by a user'}")
    over = now >= attempt.lease_expires_at
    changes, lease = _live(task, attempt, now, terms)
    if attempt.older and attempt.started_at is None:
        # Older agents renew and tell progress of what runs, and of nothing else; their start
        # may have been refused, and they do not repeat it.
        changes |= {"status": State.RUNNING, "started_at": now}
        lease |= {"started_at": now}
    if isinstance(event, Progress):
        changes |= {"progress": event.percent, "progress_message": event.message}
        lease = lease if over else {k: v for k, v in lease.items() if k not in _TIMES}
    return Effect(task=changes, attempt=lease)


def _complete(task: Task, attempt: Attempt | None, event: Complete, now: float, _: Terms) -> Effect:
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    ended = {
        "ended_at": now,
        "end": End.COMPLETED,
        "exit_code": event.exit_code,
        "signal": event.signal,
        "reason": event.reason,
        "error_code": event.error_code,
        "error": event.error,
        "usage": event.usage,
        "truncated": event.truncated,
    }
    status = event.status
    if task.cancel_requested_at is not None and status is not State.COMPLETED:
        status = State.CANCELLED
    elif status is State.FAILED and attempt.older and task.retry_count < task.max_retries:
        due = now + (task.retry_delay or RETRY_DELAY)
        again = {"status": State.PENDING, "attempt_id": None, "due_at": due}
        return Effect(task={**again, "retry_count": task.retry_count + 1}, attempt=ended)
    result = {key: value for key, value in ended.items() if key != "end"}
    return Effect(task={**result, "status": status}, attempt=ended)


def _release(task: Task, attempt: Attempt | None, event: Release, now: float, _: Terms) -> Effect:
    fenced = _fence(task, attempt, event)
    if fenced is not None or attempt is None:
        return fenced or UNCHANGED
    if attempt.started_at is not None:
        return _refuse(Code.CONFLICT, "the run has begun; only what has not can be given back")
    ended = {"ended_at": now, "end": End.RELEASED, "reason": event.reason}
    if task.cancel_requested_at is not None:
        return Effect(task=_cancelled(task.cancel_reason, now), attempt=ended)
    return Effect(task={"status": State.PENDING, "attempt_id": None, "due_at": None}, attempt=ended)


def _cancel(task: Task, attempt: Attempt | None, event: Cancel, now: float, _: Terms) -> Effect:
    if task.status in FINAL:
        return _refuse(Code.TASK_FINAL, f"the task is {task.status.value}, it cannot change")
    if task.status in HELD and attempt is not None and now < attempt.lease_expires_at:
        if task.cancel_requested_at is not None:
            return UNCHANGED
        return Effect(task={"cancel_requested_at": now, "cancel_reason": event.reason})
    return _end(task, attempt, {**_cancelled(event.reason, now), "cancel_reason": event.reason})


def _describe(task: Task, attempt: Attempt | None, event: Describe, now: float, _: Terms) -> Effect:
    if task.status in FINAL:
        return _refuse(Code.TASK_FINAL, f"the task is {task.status.value}, it cannot change")
    if task.status in HELD:
        return _refuse(Code.CONFLICT, "an agent holds the task; cancel it, then submit another")
    # Whoever held it before its lease ran out must not come back and run the old words.
    afresh = {"attempt_id": None, "due_at": None, "retry_count": 0, "lost_attempts": 0}
    ended = {"ended_at": now, "end": End.SUPERSEDED} if attempt else {}
    return Effect(task={**event.columns, **afresh}, attempt=ended)


def _tick(task: Task, attempt: Attempt | None, event: Tick, now: float, terms: Terms) -> Effect:
    if task.wake_at is None or now < task.wake_at:
        return UNCHANGED
    if task.status is State.PENDING:  # a retry is due
        return Effect(task={"due_at": None})
    if task.cancel_requested_at is not None:
        return _end(task, attempt, _cancelled(task.cancel_reason, now))
    began = attempt is not None and attempt.started_at is not None
    lost = task.lost_attempts + 1
    if began and lost >= terms.max_attempts:
        words = f"the leases of {lost} attempts that had begun ran out; no more are granted"
        failed = {"status": State.FAILED, "ended_at": now, "error": words, "reason": "lost"}
        failed |= {"error_code": Code.ATTEMPTS_EXHAUSTED, "lost_attempts": lost}
        return _end(task, attempt, failed)
    return Effect(task={"status": State.PENDING})


def _end(task: Task, attempt: Attempt | None, changes: dict[str, Any]) -> Effect:
    ended = {"ended_at": changes["ended_at"], "end": End.ENDED} if attempt else {}
    return Effect(task=changes, attempt=ended)


def _cancelled(reason: str, now: float) -> dict[str, Any]:
    words = f"cancelled: {reason}" if reason else "cancelled"
    return {"status": State.CANCELLED, "ended_at": now, "error": words, "reason": "cancelled"}


def _refuse(code: Code, message: str) -> Effect:
    return Effect(code=code, message=message)


_RULES: Final[Mapping[type, Callable[..., Effect]]] = {
    Grant: _grant,
    Start: _start,
    Renew: _renew,
    Progress: _renew,
    Complete: _complete,
    Release: _release,
    Cancel: _cancel,
    Describe: _describe,
    Tick: _tick,
}
