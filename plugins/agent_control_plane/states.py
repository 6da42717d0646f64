"""What the server knows of a task and of an attempt at it, as far as it decides anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from agent_core.api.wire import Code


class State(StrEnum):
    """Where a task stands on the server; `preempted` and `suspended` are told by agents."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    PREEMPTED = "preempted"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
HELD: Final = frozenset({State.ASSIGNED, State.RUNNING, State.PREEMPTED, State.SUSPENDED})


class End(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"  # by its own complete, whatever the result
    RELEASED = "released"  # given back unbegun
    SUPERSEDED = "superseded"  # a newer one was granted, or the task was described anew
    ENDED = "ended"  # the task ended without it: cancelled, or leases ran out too often


# Task, Attempt and Effect are tuples because each request makes hundreds of them.


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The server's terms, of its settings."""

    lease_sec: float
    disconnect_grace: float  # seconds, for tasks that name none
    max_attempts: int  # that began and whose leases ran out


class Task(NamedTuple):
    """The columns of a task that decide, and those that are derived."""

    id: str
    status: State
    attempt_id: str | None
    machine_id: str  # the only machine that may run it; "" = any
    needs: str  # of labels, resources and executor, as needs.py writes them
    priority: int
    max_retries: int
    retry_count: int
    retry_delay: float
    disconnect_grace: float | None  # seconds; None = the server's
    lost_attempts: int  # that began, and whose task was granted anew
    cancel_requested_at: float | None
    cancel_reason: str
    due_at: float | None  # a retry waits until then
    unmet: int  # dependencies that are not completed yet
    awaited: int  # 1 = others depend on it; once it is final: and may not have been told
    held_as: State | None  # where it stood before its lease ran out, in case its agent comes back
    watched_until: float | None  # somebody reads its output as it comes
    ready_for: str | None  # derived: claimable by this machine ("" = any); None = not claimable
    wake_at: float | None  # derived: when time alone changes this task


class Attempt(NamedTuple):
    """The columns of an attempt that decide."""

    id: str
    agent_id: str
    machine_id: str
    older: bool  # granted to an agent whose retries are the server's
    lease_expires_at: float
    regrant_at: float
    started_at: float | None  # of the run in progress, or the last one; None between two runs
    began_at: float | None  # the same moment by the agent's clock
    ended_at: float | None
    end: End | None
    run_no: int  # of the last run that was told of; 0 = none, or told without a number
    stream: str  # of events, that the last one came by
    last_seq: int  # in it; what is not above it has been taken
    logged: bool  # output came while it ran

    @property
    def began(self) -> bool:
        return self.started_at is not None or self.run_no > 0


class Effect(NamedTuple):
    """What an event makes of a task: a code, and the columns that change if it is 0."""

    code: Code = Code.OK
    message: str = ""
    task: Mapping[str, Any] = _NOTHING
    attempt: Mapping[str, Any] = _NOTHING
    run: Mapping[str, Any] | None = None  # one that ended and is followed by another
