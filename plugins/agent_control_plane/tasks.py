"""What users do with tasks, from submit to reading the output."""

import base64
import json
import uuid
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, select

from agent_control_plane import schemas
from agent_control_plane.events import Cancel, Describe
from agent_control_plane.ledger import act, load, no_such_task
from agent_control_plane.states import FINAL, HELD, End, State, Terms
from agent_control_plane.tables import attempts, outputs, tasks
from agent_control_plane.views import DESCRIPTION, from_json, run, summary
from agent_core.api.http import Problem
from agent_core.api.wire import Code, Json

PIECE: Final = 2**20  # bytes of output in one answer
RUNS_SHOWN: Final = 1000  # of one task, the newest
_OPEN: Final = [state.value for state in State if state not in FINAL]

_VIEW = select(tasks, attempts.c.lease_expires_at, attempts.c.regrant_at).select_from(
    tasks.outerjoin(attempts, attempts.c.id == tasks.c.attempt_id)
)
_ONE = _VIEW.where(tasks.c.id == bindparam("task"))
_RUNS = (
    select(attempts)
    .where(attempts.c.task_id == bindparam("task"))
    # What began; and an older agent's result although its start was refused.
    .where(
        attempts.c.started_at.is_not(None)
        | ((attempts.c.end == End.COMPLETED.value) & attempts.c.exit_code.is_not(None))
    )
    .order_by(attempts.c.granted_at.desc(), attempts.c.id)
    .limit(RUNS_SHOWN)
)
_COUNT_OPEN = select(func.count()).select_from(tasks).where(tasks.c.status.in_(_OPEN))


class Gauge:
    """How many tasks are not final, never counted too low; used by the writer alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._at_most = most  # the first one counts

    def admit(self, connection: Connection) -> None:
        """One more. Raises Problem if the queue is full."""
        if self._at_most >= self._most:
            self._at_most = connection.execute(_COUNT_OPEN).scalar() or 0
        if self._at_most >= self._most:
            raise Problem(
                Code.FULL,
                f"the queue is full: {self._most} tasks are not final yet; try again later",
            )
        self._at_most += 1


def submit(
    connection: Connection, body: schemas.Description, now: float, terms: Terms, gauge: Gauge
) -> dict[str, Json]:
    task_id = body.id or str(uuid.uuid4())
    if connection.execute(select(tasks.c.seq).where(tasks.c.id == task_id)).first() is not None:
        raise Problem(Code.CONFLICT, f"id: a task {task_id} exists already; name another, or none")
    gauge.admit(connection)
    _insert(connection, {**_described(body), "id": task_id}, now)
    return look(connection, task_id, now, terms)


def retry(
    connection: Connection, task_id: str, now: float, terms: Terms, gauge: Gauge
) -> dict[str, Json]:
    """A new task like a final one."""
    row = _row(connection, task_id)
    if row["status"] not in FINAL:
        raise Problem(
            Code.CONFLICT, f"the task is {row['status']}; only one that has ended can be retried"
        )
    gauge.admit(connection)
    new_id = str(uuid.uuid4())
    described = {name: row[name] for name in DESCRIPTION}
    _insert(connection, {**described, "id": new_id, "parent_id": task_id}, now)
    return look(connection, new_id, now, terms)


def _described(body: schemas.Description) -> dict[str, Any]:
    return {
        **{name: getattr(body, name) for name in DESCRIPTION},
        "args": json.dumps(body.args),
        "env": json.dumps(body.env),
        "exec": int(body.exec),
    }


def _insert(connection: Connection, described: Mapping[str, Any], now: float) -> None:
    blank = {
        **dict.fromkeys(("assigned_agent_id", "assigned_machine_id", "cancel_reason"), ""),
        **dict.fromkeys(("progress_message", "error"), ""),
        **dict.fromkeys(("retry_count", "lost_attempts", "error_code"), 0),
    }
    values = {
        "parent_id": None,
        **blank,
        **described,
        "created_at": now,
        "status": State.PENDING.value,
        "ready_for": described["machine_id"],
    }
    connection.execute(insert(tasks), values)


def listed(
    connection: Connection, query: schemas.ListQuery, now: float, terms: Terms
) -> dict[str, Json]:
    """A page, newest first."""
    statement: Select[Any] = _VIEW.order_by(tasks.c.seq.desc()).limit(query.limit + 1)
    if query.status:
        statement = statement.where(tasks.c.status.in_(query.status))
    if query.machine:
        where = (tasks.c.assigned_machine_id == query.machine) & (tasks.c.status != "pending")
        statement = statement.where(where | (tasks.c.machine_id == query.machine))
    if query.name:  # not LIKE: it minds case on one database and not on the other
        statement = statement.where(func.substr(tasks.c.name, 1, len(query.name)) == query.name)
    if query.after:
        if not (query.after.isascii() and query.after.isdigit() and int(query.after) < 2**63):
            raise Problem(Code.INVALID, "after: take the next_cursor of the page before")
        statement = statement.where(tasks.c.seq < int(query.after))
    rows = connection.execute(statement).mappings().all()
    page = rows[: query.limit]
    return {
        "tasks": [summary(dict(row), terms.disconnect_grace, now) for row in page],
        "next_cursor": str(page[-1]["seq"]) if len(rows) > len(page) else None,
    }


def look(connection: Connection, task_id: str, now: float, terms: Terms) -> dict[str, Json]:
    """One task with its output and its runs."""
    row = _row(connection, task_id)
    runs = [dict(each) for each in connection.execute(_RUNS, {"task": task_id}).mappings()][::-1]
    ended = State(row["status"]) in FINAL
    texts = _texts(connection, row["attempt_id"]) if ended and row["attempt_id"] else {}
    return {
        **summary(row, terms.disconnect_grace, now),
        "stdout": texts.get("stdout", b"").decode(),
        "stderr": texts.get("stderr", b"").decode(),
        "runs": [run(each, number) for number, each in enumerate(runs, 1)],
    }


def _row(connection: Connection, task_id: str) -> Mapping[str, Any]:
    row = connection.execute(_ONE, {"task": task_id}).mappings().first()
    if row is None:
        raise no_such_task(task_id)
    return dict(row)


def _texts(connection: Connection, attempt_id: str) -> dict[str, bytes]:
    query = select(outputs.c.stream, outputs.c.data).where(outputs.c.attempt_id == attempt_id)
    return {row.stream: row.data for row in connection.execute(query)}


def describe(
    connection: Connection, task_id: str, body: schemas.Description, now: float, terms: Terms
) -> dict[str, Json]:
    """Replace the whole description of a task that nobody holds."""
    if body.id not in (None, task_id):
        raise Problem(Code.INVALID, f"id: {body.id} is not the task of this address, {task_id}")
    act(connection, task_id, Describe(columns=_described(body)), now, terms)
    return look(connection, task_id, now, terms)


def cancel(
    connection: Connection, task_id: str, body: schemas.CancelCall, now: float, terms: Terms
) -> dict[str, Json]:
    act(connection, task_id, Cancel(reason=body.reason), now, terms)
    return look(connection, task_id, now, terms)


def remove(connection: Connection, task_id: str) -> dict[str, Json]:
    task, _ = load(connection, task_id)
    if task.status in HELD:
        raise Problem(Code.CONFLICT, "an agent holds the task; cancel it first")
    connection.execute(delete(outputs).where(outputs.c.task_id == task_id))
    connection.execute(delete(attempts).where(attempts.c.task_id == task_id))
    connection.execute(delete(tasks).where(tasks.c.id == task_id))
    return {"id": task_id}


def output(connection: Connection, task_id: str, query: schemas.LogsQuery) -> dict[str, Json]:
    """A piece of what one run wrote, cut between characters."""
    task = _row(connection, task_id)
    runs = connection.execute(_RUNS, {"task": task_id}).mappings().all()[::-1]
    final = State(task["status"]) in FINAL
    if query.run is not None and query.run > len(runs) and (final or query.run > len(runs) + 1):
        raise Problem(Code.INVALID, f"run: {query.run} is not there; {len(runs)} began so far")
    chosen = runs[-1] if runs and query.run is None else None
    if query.run is not None and query.run <= len(runs):
        chosen = runs[query.run - 1]
    if chosen is None:  # a task that never ran may have said something all the same
        attempt_id, over, truncated = task["attempt_id"], final, task["truncated"]
    else:
        attempt_id, over = chosen["id"], chosen["ended_at"] is not None
        truncated = chosen["truncated"]
    # What a single call brings is there as a whole, or not yet.
    data = _texts(connection, attempt_id).get(query.stream, b"") if attempt_id and over else b""
    dropped = (from_json(truncated) or {}).get(query.stream, 0)
    return {**_piece(data, query.offset, over), "dropped": dropped}


def _piece(data: bytes, offset: int, over: bool) -> dict[str, Json]:
    if offset > len(data):
        raise Problem(Code.INVALID, f"offset: {offset} is beyond the end, {len(data)}")
    end = min(offset + PIECE, len(data))
    while offset < end < len(data) and data[end] & 0xC0 == 0x80:
        end -= 1  # not within a character
    piece = data[offset:end]
    try:
        text, encoding = piece.decode(), "utf-8"
    except UnicodeDecodeError:  # an offset within a character
        text, encoding = base64.b64encode(piece).decode(), "base64"
    return {
        "data": text,
        "encoding": encoding,
        "offset": offset,
        "next_offset": end,
        "eof": over and end == len(data),
    }
