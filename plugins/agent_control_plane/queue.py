"""The queue: who gets which task next, and the same again for a claim that is repeated."""

import uuid
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, select, union_all

from agent_control_plane import agents
from agent_control_plane.events import Grant, Renew
from agent_control_plane.ledger import (
    OWN_TASK,
    Change,
    columns_with,
    plain,
    read_attempt,
    read_task,
    save,
)
from agent_control_plane.ledger import sweep as give_time_its_due
from agent_control_plane.lifecycle import apply, granted
from agent_control_plane.older import older_task
from agent_control_plane.states import Attempt, Task, Terms
from agent_control_plane.tables import attempts, tasks
from agent_control_plane.views import DESCRIPTION, granted_task
from agent_core.api.wire import Code, Json

MOST: Final = 100  # tasks in one answer
UNBEGUN_KEPT: Final = 86400.0  # seconds that an attempt which never began is remembered

_SENT: Final = (*DESCRIPTION, "parent_id", "created_at", "assigned_at", "assigned_agent_id")
_WIRE: Final = [tasks.c[name] for name in _SENT if name not in Task.__slots__]


def _waiting(ready_for: str) -> Select[Any]:
    """The most urgent for one machine, or for any: each straight from the index."""
    order = (tasks.c.priority, tasks.c.created_at, tasks.c.seq)
    found = (
        select(*order)
        .where(tasks.c.ready_for == bindparam(ready_for))
        .order_by(*order)
        .limit(bindparam("most"))
        .subquery()
    )
    return select(found)


_BOTH = union_all(_waiting("any"), _waiting("mine")).subquery()
_NEXT = select(_BOTH.c.seq).order_by(_BOTH.c.priority, _BOTH.c.created_at, _BOTH.c.seq)
_URGENCY = (tasks.c.priority, tasks.c.created_at, tasks.c.seq)
_CANDIDATES = (
    columns_with(*_WIRE).where(tasks.c.seq.in_(_NEXT.limit(bindparam("most")))).order_by(*_URGENCY)
)
# An attempt that is not ended and whose task nobody else may claim: it is held.
_IS_HELD = (
    (attempts.c.agent_id == bindparam("agent"))
    & attempts.c.ended_at.is_(None)
    & tasks.c.ready_for.is_(None)
)
_SAME_CLAIM = (
    columns_with(*_WIRE, source=OWN_TASK)
    .where(_IS_HELD & (attempts.c.request_id == bindparam("request")))
    .order_by(*_URGENCY)
)
_COUNT_HELD = select(func.count()).select_from(OWN_TASK).where(_IS_HELD)


class Asked(NamedTuple):
    """A claim."""

    agent_id: str
    machine_id: str
    limit: int
    request_id: str  # "" = cannot be repeated
    older: bool
    older_workers: int  # of an older agent that never said how many it has


def claim(connection: Connection, asked: Asked, now: float, terms: Terms) -> dict[str, Json]:
    """At most `limit` tasks, each to this agent alone; the same request_id again the same ones."""
    workers = agents.seen(connection, asked.agent_id, asked.machine_id, now)
    give_time_its_due(connection, now, terms)
    found = _repeated(connection, asked, now, terms) if asked.request_id else []
    if not found:
        most = min(asked.limit, MOST)
        if asked.older:
            # They start whatever they are given, so they are given what may run at once.
            held = connection.execute(_COUNT_HELD, {"agent": asked.agent_id}).scalar() or 0
            most = min(most, (workers or asked.older_workers) - held)
        found = _grant(connection, asked, most, now, terms) if most > 0 else []
    return {"tasks": [older_task(task) if asked.older else task for task in found]}


def _repeated(
    connection: Connection, asked: Asked, now: float, terms: Terms
) -> list[dict[str, Json]]:
    """What that claim brought and is still held; the agent counts its lease from this call."""
    what = {"agent": asked.agent_id, "request": asked.request_id}
    found: list[dict[str, Json]] = []
    changes: list[Change] = []
    for row in connection.execute(_SAME_CLAIM, what):
        task, attempt = read_task(row), read_attempt(row)
        if attempt is None:
            continue
        lease = {"lease_expires_at": attempt.lease_expires_at, "regrant_at": attempt.regrant_at}
        if not attempt.older:
            effect = apply(task, attempt, Renew(agent_id=asked.agent_id), now, terms)
            if effect.code is Code.OK:  # else a cancel was requested: its lease is to run out
                changes.append((task, attempt, effect))
                lease |= effect.attempt
        found.append(_told(row, {**lease, "machine_id": asked.machine_id}, terms))
    save(connection, *changes)
    return found


def _grant(
    connection: Connection, asked: Asked, most: int, now: float, terms: Terms
) -> list[dict[str, Json]]:
    rows = connection.execute(
        _CANDIDATES, {"any": "", "mine": asked.machine_id, "most": most}
    ).all()
    found: list[dict[str, Json]] = []
    changes: list[Change] = []
    made: list[dict[str, Any]] = []
    for row in rows:
        task = read_task(row)
        event = Grant(
            attempt_id=str(uuid.uuid4()),
            agent_id=asked.agent_id,
            machine_id=asked.machine_id,
            request_id=asked.request_id,
            older=asked.older,
        )
        old = read_attempt(row)
        effect = apply(task, old, event, now, terms)
        if effect.code is not Code.OK:
            continue
        attempt = granted(task, event, now, terms)
        changes.append((task, old, effect))
        made.append(_new_row(attempt, event, task.id, now))
        found.append(_told(row, {**made[-1], **plain(effect.task)}, terms))
    save(connection, *changes)
    if made:
        connection.execute(insert(attempts), made)
    return found


def _new_row(attempt: Attempt, event: Grant, task_id: str, now: float) -> dict[str, Any]:
    return {
        "id": attempt.id,
        "task_id": task_id,
        "agent_id": attempt.agent_id,
        "machine_id": event.machine_id,
        "request_id": event.request_id,
        "older": int(attempt.older),
        "granted_at": now,
        "lease_expires_at": attempt.lease_expires_at,
        "regrant_at": attempt.regrant_at,
        "error_code": 0,
        "error": "",
    }


def _told(row: Row[Any], changed: Mapping[str, Any], terms: Terms) -> dict[str, Json]:
    columns = row._mapping  # public, in spite of its name
    return granted_task({**columns, **changed, "id": columns["id"]}, terms.disconnect_grace)


def forget(connection: Connection, now: float) -> None:
    """Attempts that never began and ended a day ago: a repeat of their calls is stale by then."""
    connection.execute(
        delete(attempts)
        .where(attempts.c.started_at.is_(None))
        .where(attempts.c.ended_at <= now - UNBEGUN_KEPT)
        .where(attempts.c.end.in_(["released", "superseded"]))
    )
