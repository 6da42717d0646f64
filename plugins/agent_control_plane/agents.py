"""What agents say: register, heartbeat, and the single calls about an attempt."""

import json
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from agent_control_plane import commands, offers, outputs, schemas
from agent_control_plane.event_schemas import CompleteEvent, RunEvent
from agent_control_plane.events import Complete, Progress, Release, Renew, Start
from agent_control_plane.ledger import act, load, save
from agent_control_plane.lifecycle import apply
from agent_control_plane.prepared import Query
from agent_control_plane.states import Effect, State, Terms
from agent_control_plane.tables import agents, attempts
from agent_core.api.http import Problem
from agent_core.api.wire import Code, Json, Word, rfc3339

EVENTS: Final = 100  # in a batch, once the extension is there
EVENT_BYTES: Final = 8 * 2**20
Ended = schemas.CompleteCall | CompleteEvent
SEEN_EVERY: Final = 10.0  # seconds; last_seen_at is not written more often by claims
FORGOTTEN_AFTER: Final = 30 * 86400.0  # seconds without a word

_AGENT = (
    select(
        agents.c.machine_id,
        agents.c.max_workers,
        agents.c.last_seen_at,
        agents.c.has,
        agents.c.free,
        agents.c.registered_at,
        commands.EXIST.label("commanded"),
    )
    .where(agents.c.id == bindparam("agent"))
    .with_for_update()  # one claim of an agent at a time, whichever server it asks
)
_find_agent = Query(_AGENT)


class _Found(NamedTuple):
    machine_id: str
    max_workers: int | None
    last_seen_at: float
    has: str
    free: str
    registered_at: float | None
    commanded: bool


class Known(NamedTuple):
    """What an agent has told of itself."""

    max_workers: int | None  # None = it never said
    has: str  # what its machine has, as offers.py reads it
    commanded: bool = False  # there may be commands for it
    registered: bool = False


def seen(connection: Connection, agent_id: str, machine_id: str, now: float, **said: Any) -> Known:
    """Note that an agent was heard, and what it said. Returns what is known of it.

    An agent may claim without having registered, and heartbeat without either.
    """
    row = _find_agent.first(connection, {"agent": agent_id})
    if row is None:
        values = {"id": agent_id, "machine_id": machine_id, "last_seen_at": now, **_BLANK, **said}
        connection.execute(insert(agents), values)
        return Known(said.get("max_workers"), said.get("has", ""))
    found = _Found._make(row)
    if said.keys() == {"free"} and said["free"] == found.free:
        said = {}
    if said or found.machine_id != machine_id or not 0 <= now - found.last_seen_at < SEEN_EVERY:
        values = {"machine_id": machine_id, "last_seen_at": now, **said}
        connection.execute(update(agents).where(agents.c.id == agent_id).values(values))
    return Known(
        said.get("max_workers") or found.max_workers,
        said.get("has", found.has),
        bool(found.commanded),
        found.registered_at is not None,
    )


_BLANK: Final = {"version": "", "hostname": "", "ip_address": ""}


def register(
    connection: Connection,
    call: schemas.Register,
    now: float,
    terms: Terms,
    words: frozenset[Word],
) -> dict[str, Json]:
    said = {
        "version": call.version or "",
        "hostname": call.hostname or "",
        "ip_address": call.ip_address or "",
        "agent_port": call.agent_port,
        "max_workers": call.max_workers or None,
        "capabilities": " ".join(sorted(set(call.capabilities or ()))),
        "has": offers.has(call),
        "registered_at": now,
    }
    seen(connection, call.agent_id, call.machine_id, now, **said)
    return {
        "status": "ok",
        "machine_id": call.machine_id,
        "capabilities": _named(words),
        "limits": {"events": EVENTS, "bytes": EVENT_BYTES},
        "lease_sec": int(terms.lease_sec),
        "time": rfc3339(now),
    }


def _named(words: frozenset[Word]) -> list[Json]:
    return [word.value for word in Word if word in words]


def heartbeat(
    connection: Connection,
    call: schemas.Heartbeat,
    now: float,
    words: frozenset[Word],
    older: bool,
) -> dict[str, Json]:
    """To ours also what register would answer: it may be another server by now, or another list.

    Of an agent whose register is not on record it names none: that is not what was told then.
    """
    metrics = json.dumps(call.metrics, allow_nan=False) if call.metrics is not None else None
    known = seen(connection, call.agent_id, call.machine_id, now, metrics=metrics)
    if older:
        return {"status": "ok"}
    told = commands.NONE
    if known.commanded and Word.COMMANDS in words:
        told = commands.tell(connection, call.agent_id, now)
    named = _named(words) if known.registered else []
    return {"status": "ok", "capabilities": named, "commands": list(told.commands)}


def start(
    connection: Connection, task_id: str, call: schemas.StartCall, now: float, terms: Terms
) -> dict[str, Json]:
    event = Start(agent_id=call.agent_id)
    task, effect = act(connection, task_id, event, now, terms, attempt_id=call.attempt_id)
    began = effect.attempt.get("started_at")
    if began is None:  # the same again: what was noted then
        query = select(attempts.c.started_at).where(attempts.c.id == call.attempt_id)
        began = connection.execute(query).scalar()
    return {
        "task_id": task_id,
        "status": _status(task.status, effect),
        "attempt_id": call.attempt_id,
        "started_at": rfc3339(began),
    }


def renew(
    connection: Connection, task_id: str, call: schemas.RenewCall, now: float, terms: Terms
) -> dict[str, Json]:
    event = Renew(agent_id=call.agent_id)
    _, effect = act(connection, task_id, event, now, terms, attempt_id=call.attempt_id)
    return {
        "task_id": task_id,
        "renewed": True,
        "lease_sec": int(terms.lease_sec),
        "lease_expires_at": rfc3339(effect.attempt["lease_expires_at"]),
        "regrant_at": rfc3339(effect.attempt["regrant_at"]),
    }


def progress(
    connection: Connection, task_id: str, call: schemas.ProgressCall, now: float, terms: Terms
) -> dict[str, Json]:
    event = Progress(agent_id=call.agent_id, percent=call.percent, message=call.message or "")
    act(connection, task_id, event, now, terms, attempt_id=call.attempt_id)
    return {"task_id": task_id, "progress": call.percent}


def complete(
    connection: Connection, task_id: str, call: schemas.CompleteCall, now: float, terms: Terms
) -> dict[str, Json]:
    event = completion(call, call.agent_id)
    task, attempt = load(connection, task_id, call.attempt_id)
    effect = apply(task, attempt, event, now, terms)
    if effect.code is not Code.OK:
        raise Problem(effect.code, effect.message)
    save(connection, (task, attempt, effect))
    if effect.attempt and attempt is not None:  # not a repeat
        outputs.keep(connection, outputs.end(connection, attempt, task_id, call))
    return {"task_id": task_id, "status": _status(task.status, effect)}


def completion(call: Ended, agent_id: str, told_at: float | None = None) -> Complete:
    """The event of a complete. Without a status, exit_code and error decide.

    An older agent says exit_code 0 with an error for a run that it lost at its restart.
    """
    done = call.exit_code in (0, None) and not call.error
    status = State(call.status) if call.status else State.COMPLETED if done else State.FAILED
    found = outcome(call)
    if call.status is None and call.exit_code is None:
        found["exit_code"] = 0
    return Complete(agent_id=agent_id, status=status, told_at=told_at, **found)


def outcome(call: Ended | RunEvent) -> dict[str, Any]:
    """How a run ended, as far as an agent says."""
    return {
        "exit_code": call.exit_code,
        "signal": call.signal,
        "reason": call.reason,
        "error_code": call.error_code or 0,
        "error": call.error or "",
        "usage": None if call.usage is None else call.usage.model_dump_json(),
        "truncated": None if call.truncated is None else call.truncated.model_dump_json(),
    }


def release(
    connection: Connection, task_id: str, call: schemas.ReleaseCall, now: float, terms: Terms
) -> dict[str, Json]:
    event = Release(agent_id=call.agent_id, reason=call.reason or "")
    task, effect = act(connection, task_id, event, now, terms, attempt_id=call.attempt_id)
    return {"task_id": task_id, "status": _status(task.status, effect)}


def forget(connection: Connection, now: float) -> None:
    """Agents that have been silent for a month."""
    connection.execute(delete(agents).where(agents.c.last_seen_at <= now - FORGOTTEN_AFTER))


def _status(before: State, effect: Effect) -> str:
    return State(effect.task.get("status", before)).value
