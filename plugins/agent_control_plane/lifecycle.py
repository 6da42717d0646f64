"""The life of a task on the server: what an event makes of a task and its attempt, purely.

A task is `pending` until an agent is granted an attempt at it (`assigned`), `running` from that
attempt's start, and final at its end. An attempt whose lease and grace are both over leaves the
task `pending` and open to a new grant, but is not ended: until that grant it can still come back.

    an attempt is not ended  <=>  its task's attempt_id names it and its task is not final
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from agent_control_plane import calls
from agent_control_plane.calls import UNCHANGED, cancelled, lease, refuse
from agent_control_plane.events import Cancel, Describe, Event, Grant, Settle, Tick
from agent_control_plane.states import FINAL, HELD, Attempt, Effect, End, State, Task, Terms
from agent_core.api.wire import Code

_TASK: Final = frozenset(Task._fields)
_ATTEMPT: Final = frozenset(Attempt._fields)


def apply(task: Task, attempt: Attempt | None, event: Event, now: float, terms: Terms) -> Effect:
    """The one place where a task changes. `attempt` is the one that the event names.

    For Grant, Cancel and Tick it is the task's own, if it has one.
    """
    effect = _RULES[type(event)](task, attempt, event, now, terms)
    if not effect.task and not effect.attempt:
        return effect
    times: Mapping[str, float] | None = None
    if isinstance(event, Grant):
        times = lease(task, now, terms)
    elif attempt is not None:
        times = {
            "lease_expires_at": attempt.lease_expires_at,
            "regrant_at": attempt.regrant_at,
            **effect.attempt,
        }
    ready_for, wake_at = _derive(task, effect.task, times)
    if ready_for == task.ready_for and wake_at == task.wake_at:
        return effect
    changed = {**effect.task}
    if ready_for != task.ready_for:
        changed["ready_for"] = ready_for
    if wake_at != task.wake_at:
        changed["wake_at"] = wake_at
    return Effect(task=changed, attempt=effect.attempt, run=effect.run)


def after(task: Task, attempt: Attempt, effect: Effect) -> tuple[Task, Attempt]:
    """Both as the effect leaves them."""
    moved = {name: value for name, value in effect.task.items() if name in _TASK}
    held = {name: value for name, value in effect.attempt.items() if name in _ATTEMPT}
    return task._replace(**moved), attempt._replace(**held)


def granted(task: Task, event: Grant, now: float, terms: Terms) -> Attempt:
    """The attempt that a Grant makes."""
    return Attempt(
        id=event.attempt_id,
        agent_id=event.agent_id,
        machine_id=event.machine_id,
        older=event.older,
        started_at=None,
        began_at=None,
        ended_at=None,
        end=None,
        run_no=0,
        stream="",
        last_seq=0,
        logged=False,
        **lease(task, now, terms),
    )


def _derive(
    task: Task, changes: Mapping[str, Any], times: Mapping[str, Any] | None
) -> tuple[str | None, float | None]:
    """ready_for and wake_at: the claim's and the sweep's conditions, written nowhere else.

    `times` are the ends of lease and grace of the attempt that the task has then.
    """
    status = changes.get("status", task.status)
    if status is State.PENDING:
        if changes.get("unmet", task.unmet):
            return None, None
        due_at = changes.get("due_at", task.due_at)
        if due_at is None:
            return changes.get("machine_id", task.machine_id), None
        return None, due_at
    if status in FINAL:  # at once, until all that depend on it have been told
        awaited = changes.get("awaited", task.awaited)
        return None, 0.0 if awaited else None
    if times is None:
        return None, None
    ending = changes.get("cancel_requested_at", task.cancel_requested_at) is not None
    return None, times["lease_expires_at" if ending else "regrant_at"]


def _grant(task: Task, attempt: Attempt | None, event: Grant, now: float, terms: Terms) -> Effect:
    if task.ready_for not in ("", event.machine_id):
        return refuse(Code.CONFLICT, "the task is not free for this machine")
    began = attempt is not None and attempt.began  # and lost, or it were not free
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


def _cancel(task: Task, attempt: Attempt | None, event: Cancel, now: float, _: Terms) -> Effect:
    if task.status in FINAL:
        return refuse(Code.TASK_FINAL, f"the task is {task.status.value}, it cannot change")
    if task.status in HELD and attempt is not None and now < attempt.lease_expires_at:
        if task.cancel_requested_at is not None:
            return UNCHANGED
        return Effect(task={"cancel_requested_at": now, "cancel_reason": event.reason})
    return _end(task, attempt, {**cancelled(event.reason, now), "cancel_reason": event.reason})


def _describe(task: Task, attempt: Attempt | None, event: Describe, now: float, _: Terms) -> Effect:
    if task.status in FINAL:
        return refuse(Code.TASK_FINAL, f"the task is {task.status.value}, it cannot change")
    if task.status in HELD:
        return refuse(Code.CONFLICT, "an agent holds the task; cancel it, then submit another")
    # Whoever held it before its lease ran out must not come back and run the old words.
    afresh = {"attempt_id": None, "due_at": None, "retry_count": 0, "lost_attempts": 0}
    ended = {"ended_at": now, "end": End.SUPERSEDED} if attempt else {}
    return Effect(task={**event.columns, **afresh}, attempt=ended)


def _settle(task: Task, attempt: Attempt | None, event: Settle, now: float, _: Terms) -> Effect:
    if task.status is not State.PENDING or not task.unmet:
        return UNCHANGED
    if event.completed:
        return Effect(task={"unmet": task.unmet - 1})
    failed = {"status": State.FAILED, "ended_at": now, "error": event.words}
    failed |= {"reason": "dependency", "error_code": Code.DEPENDENCY}
    return _end(task, attempt, failed)


def _tick(task: Task, attempt: Attempt | None, event: Tick, now: float, terms: Terms) -> Effect:
    if task.wake_at is None or now < task.wake_at or task.status in FINAL:
        return UNCHANGED
    if task.status is State.PENDING:  # a retry is due
        return Effect(task={"due_at": None})
    if task.cancel_requested_at is not None:
        return _end(task, attempt, cancelled(task.cancel_reason, now))
    began = attempt is not None and attempt.began
    lost = task.lost_attempts + 1
    if began and lost >= terms.max_attempts:
        words = f"the leases of {lost} attempts that had begun ran out; no more are granted"
        failed = {"status": State.FAILED, "ended_at": now, "error": words, "reason": "lost"}
        failed |= {"error_code": Code.ATTEMPTS_EXHAUSTED, "lost_attempts": lost}
        return _end(task, attempt, failed)
    return Effect(task={"status": State.PENDING, "held_as": task.status, "due_at": None})


def _end(task: Task, attempt: Attempt | None, changes: dict[str, Any]) -> Effect:
    ended = {"ended_at": changes["ended_at"], "end": End.ENDED} if attempt else {}
    return Effect(task=changes, attempt=ended)


_RULES: Final[Mapping[type, Callable[..., Effect]]] = {
    **calls.RULES,
    Grant: _grant,
    Cancel: _cancel,
    Describe: _describe,
    Settle: _settle,
    Tick: _tick,
}
