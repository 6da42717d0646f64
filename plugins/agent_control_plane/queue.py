"""The queue: who gets which task next, and the same again for a claim that is repeated."""

import uuid
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, select

from agent_control_plane import agents, commands, offers, schemas
from agent_control_plane.choice import URGENCY, WIRE, chosen
from agent_control_plane.events import Grant, Renew
from agent_control_plane.ledger import save
from agent_control_plane.ledger import sweep as give_time_its_due
from agent_control_plane.lifecycle import apply, granted
from agent_control_plane.needs import Offer
from agent_control_plane.older import older_task
from agent_control_plane.prepared import Query, Row
from agent_control_plane.rows import (
    ATTEMPT_COLUMNS,
    OWN_TASK,
    Change,
    columns_with,
    insert_all,
    plain,
    read_attempt,
    read_task,
)
from agent_control_plane.states import Attempt, Task, Terms
from agent_control_plane.tables import attempts, tasks
from agent_control_plane.views import granted_task
from agent_core.api.wire import Code, Json

MOST: Final = 200  # tasks in one answer
_TOLD: Final = [*Task._fields, *(c.name for c in [*WIRE, *ATTEMPT_COLUMNS])]
UNBEGUN_KEPT: Final = 86400.0  # seconds that an attempt which never began is remembered

# An attempt that is not ended and whose task nobody else may claim: it is held.
_IS_HELD = (
    (attempts.c.agent_id == bindparam("agent"))
    & attempts.c.ended_at.is_(None)
    & tasks.c.ready_for.is_(None)
)
_SAME_CLAIM = (
    columns_with(*WIRE, source=OWN_TASK)
    .where(_IS_HELD & (attempts.c.request_id == bindparam("request")))
    .order_by(*URGENCY)
)
_find_same_claim = Query(_SAME_CLAIM)
_COUNT_HELD = select(func.count()).select_from(OWN_TASK).where(_IS_HELD)


class Asked(NamedTuple):
    """A claim."""

    agent_id: str
    machine_id: str
    limit: int
    request_id: str  # "" = cannot be repeated
    older: bool
    older_workers: int  # of an older agent that never said how many it has
    free: schemas.Free | None = None


class Granted(NamedTuple):
    """What a claim brings."""

    tasks: list[dict[str, Json]]
    offer: Offer  # what the agent would take, where it took nothing


def claim(connection: Connection, asked: Asked, now: float, terms: Terms) -> Granted:
    """At most `limit` tasks, each to this agent alone; the same request_id again the same ones."""
    free = "" if asked.older else offers.free(asked.free)
    known = agents.seen(connection, asked.agent_id, asked.machine_id, now, free=free)
    give_time_its_due(connection, now, terms)
    most = min(asked.limit, MOST)
    if asked.older:
        # They start whatever they are given, so they are given what may run at once.
        held = connection.execute(_COUNT_HELD, {"agent": asked.agent_id}).scalar() or 0
        most = max(0, min(most, (known.max_workers or asked.older_workers) - held))
        offer = Offer(machine_id=asked.machine_id, limit=most)
    else:
        offer = offers.offer(asked.machine_id, known.has, free, most)
    found = _repeated(connection, asked, now, terms) if asked.request_id else []
    if not found and (most > 0 or offer.urgent_at_most is not None):
        found = _grant(connection, asked, offer, now, terms)
    return Granted([older_task(task) if asked.older else task for task in found], offer)


def _repeated(
    connection: Connection, asked: Asked, now: float, terms: Terms
) -> list[dict[str, Json]]:
    """What that claim brought and is still held; the agent counts its lease from this call."""
    what = {"agent": asked.agent_id, "request": asked.request_id}
    found: list[dict[str, Json]] = []
    changes: list[Change] = []
    for row in _find_same_claim.rows(connection, what):
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
    connection: Connection, asked: Asked, offer: Offer, now: float, terms: Terms
) -> list[dict[str, Json]]:
    rows = chosen(connection, offer, max(offer.limit, 1))
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
    insert_all(connection, attempts, made)
    for task, _, effect in changes:
        if task.watched_until is not None and task.watched_until > now:
            held = task._replace(attempt_id=effect.task["attempt_id"], watched_until=None)
            commands.watch(connection, held, now)
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


def _told(row: Row, changed: Mapping[str, Any], terms: Terms) -> dict[str, Json]:
    columns = dict(zip(_TOLD, row, strict=True))
    return granted_task({**columns, **changed, "id": row[0]}, terms.disconnect_grace)


def forget(connection: Connection, now: float) -> None:
    """Attempts that never began and ended a day ago: a repeat of their calls is stale by then."""
    connection.execute(
        delete(attempts)
        .where(attempts.c.started_at.is_(None))
        .where(attempts.c.ended_at <= now - UNBEGUN_KEPT)
        .where(attempts.c.end.in_(["released", "superseded"]))
    )
