"""The life of a task on the agent: eight states, one table of moves, one pure function.

This module imports nothing of ours. `moves.py` is the only caller of `advance()`. Nothing makes the
moves suspend and resume yet; a store may hold their state all the same.
"""

from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """Where a task stands. A task is in exactly one of these; the last three never change."""

    PENDING = "pending"  # waits: for a slot, or for its due time
    ASSIGNED = "assigned"  # has a slot and a start id; nothing is known to run yet
    RUNNING = "running"  # its processes exist
    PREEMPTED = "preempted"  # made room for something more urgent, returns to pending
    SUSPENDED = "suspended"  # stopped in place; keeps slot and devices
    COMPLETED = "completed"  # ended with success
    FAILED = "failed"  # ended without success, was refused, never ran, or is lost
    CANCELLED = "cancelled"  # ended because somebody said so, or given back unbegun


FINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
HELD = frozenset(Status) - FINAL  # still ours to bring to an end


class EventKind(StrEnum):
    """What whoever gave us the task hears of a move."""

    START = "start"  # a run began
    RUN = "run"  # a run ended and another follows
    COMPLETE = "complete"  # the task is final
    RELEASE = "release"  # given back, it never began
    STATE = "state"  # suspended, or running again


class Move(StrEnum):
    """Everything that can happen to a task."""

    REFUSE = "refuse"  # a validator said no, it cannot be read, or its dependency did not complete
    ASSIGN = "assign"  # a slot is free; the start is stored before anything is forked
    UNASSIGN = "unassign"  # that start is known never to have begun
    POSTPONE = "postpone"  # that start never ran, for a reason that may pass: a later one follows
    NEVER_RAN = "never_ran"  # that start never ran, for good
    BEGIN = "begin"  # the processes exist
    COMPLETE = "complete"  # they ended with success
    FAIL = "fail"  # they ended without, or nobody can know how they ended
    RETRY = "retry"  # they ended without success, and another run follows
    CANCEL = "cancel"
    RELEASE = "release"
    PREEMPT = "preempt"
    RETURN = "return"
    SUSPEND = "suspend"
    RESUME = "resume"


class Transition(NamedTuple):
    """One row of the table: from which states, to which, and the event that is stored with it."""

    sources: frozenset[Status]
    target: Status
    event: EventKind | None


class IllegalMove(ValueError):
    """The table has no such row: a bug in the caller, or a move that came too late."""


def _row(sources: set[Status], target: Status, event: EventKind | None = None) -> Transition:
    return Transition(frozenset(sources), target, event)


_LIVE = {Status.RUNNING, Status.SUSPENDED}

TRANSITIONS: dict[Move, Transition] = {
    Move.REFUSE: _row({Status.PENDING}, Status.FAILED, EventKind.COMPLETE),
    Move.ASSIGN: _row({Status.PENDING}, Status.ASSIGNED),
    Move.UNASSIGN: _row({Status.ASSIGNED}, Status.PENDING),
    Move.POSTPONE: _row({Status.ASSIGNED}, Status.PENDING),
    Move.NEVER_RAN: _row({Status.ASSIGNED}, Status.FAILED, EventKind.COMPLETE),
    Move.BEGIN: _row({Status.ASSIGNED}, Status.RUNNING, EventKind.START),
    Move.COMPLETE: _row(_LIVE, Status.COMPLETED, EventKind.COMPLETE),
    Move.FAIL: _row(_LIVE, Status.FAILED, EventKind.COMPLETE),
    Move.RETRY: _row(_LIVE, Status.PENDING, EventKind.RUN),
    Move.CANCEL: _row(
        {Status.PENDING, Status.ASSIGNED, Status.PREEMPTED, *_LIVE},
        Status.CANCELLED,
        EventKind.COMPLETE,
    ),
    Move.RELEASE: _row({Status.PENDING}, Status.CANCELLED, EventKind.RELEASE),
    Move.PREEMPT: _row(_LIVE, Status.PREEMPTED, EventKind.RUN),
    Move.RETURN: _row({Status.PREEMPTED}, Status.PENDING),
    Move.SUSPEND: _row({Status.RUNNING}, Status.SUSPENDED, EventKind.STATE),
    Move.RESUME: _row({Status.SUSPENDED}, Status.RUNNING, EventKind.STATE),
}


def advance(status: Status, move: Move) -> Transition:
    """The row of the table that `move` takes from `status`.

    Raises IllegalMove if there is none; a final state has none.
    """
    transition = TRANSITIONS[move]
    if status not in transition.sources:
        raise IllegalMove(f"a task that is {status.value} cannot {move.value}")
    return transition
