"""What users do with tasks, from submit to reading the output."""

import json
import uuid
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, delete, func, select

from agent_control_plane import choice, commands, dependencies, history, messages, reading, schemas
from agent_control_plane.db import several_write
from agent_control_plane.descriptions import Description
from agent_control_plane.events import Cancel, Describe
from agent_control_plane.ledger import act, load, no_such_task
from agent_control_plane.rows import insert_all
from agent_control_plane.states import FINAL, HELD, State, Terms
from agent_control_plane.tables import attempts, outputs, pieces, runs, streams, tasks
from agent_control_plane.tables import commands as commands_of
from agent_control_plane.views import DESCRIPTION, run, summary
from agent_core.api.http import Problem
from agent_core.api.wire import Action, Code, Json

_OPEN: Final = [state.value for state in State if state not in FINAL]

_VIEW = select(tasks, attempts.c.lease_expires_at, attempts.c.regrant_at).select_from(
    tasks.outerjoin(attempts, attempts.c.id == tasks.c.attempt_id)
)
_ONE = _VIEW.where(tasks.c.id == bindparam("task"))
_EXISTS = select(tasks.c.seq).where(tasks.c.id == bindparam("task"))
_UNSET: Final = dict.fromkeys([*tasks.c.keys(), "lease_expires_at", "regrant_at"])
_COUNT_OPEN = select(func.count()).select_from(tasks).where(tasks.c.status.in_(_OPEN))
_NO_PIECES = delete(pieces).where(
    pieces.c.attempt_id.in_(
        select(streams.c.attempt_id).where(streams.c.task_id == bindparam("task"))
    )
)


class Gauge:
    """How many tasks are not final, by a count now and then; used by writers alone.

    Never too low, but for what other servers on the same database have admitted since it was
    counted: then it is counted more often.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._at_most = most  # the first one counts
        self._since = 0  # admitted since it was counted

    def admit(self, connection: Connection) -> None:
        """One more. Raises Problem if the queue is full."""
        self._since += 1
        late = several_write(connection) and self._since > self._most / 100
        if self._at_most >= self._most or late:
            self._at_most = connection.execute(_COUNT_OPEN).scalar() or 0
            self._since = 0
        if self._at_most >= self._most:
            raise Problem(
                Code.FULL,
                f"the queue is full: {self._most} tasks are not final yet; try again later",
            )
        self._at_most += 1


def submit(
    connection: Connection, body: Description, now: float, terms: Terms, gauge: Gauge
) -> dict[str, Json]:
    task_id = body.id or str(uuid.uuid4())
    if body.id and connection.execute(_EXISTS, {"task": task_id}).first() is not None:
        raise Problem(Code.CONFLICT, f"id: a task {task_id} exists already; name another, or none")
    gauge.admit(connection)
    choice.admit(connection, body.machine_id, body.needs)
    wait = dependencies.look_up(connection, body.depends_on)
    return _insert(connection, {**_described(body), "id": task_id}, wait, now, terms)


def retry(
    connection: Connection, task_id: str, now: float, terms: Terms, gauge: Gauge
) -> dict[str, Json]:
    """A new task like a final one."""
    row = row_of(connection, task_id)
    if row["status"] not in FINAL:
        raise Problem(
            Code.CONFLICT, f"the task is {row['status']}; only one that has ended can be retried"
        )
    gauge.admit(connection)
    choice.admit(connection, row["machine_id"], row["needs"])
    new_id = str(uuid.uuid4())
    # What it once waited for had completed if it ever ran, also where that is deleted since.
    wait = dependencies.look_up(
        connection, json.loads(row["depends_on"]), gone=row["assigned_at"] is not None
    )
    described = {name: row[name] for name in (*DESCRIPTION, "needs")}
    new = {**described, "id": new_id, "parent_id": task_id}
    return _insert(connection, new, wait, now, terms)


def _described(body: Description) -> dict[str, Any]:
    return {
        **{name: getattr(body, name) for name in DESCRIPTION},
        "args": json.dumps(body.args),
        "env": json.dumps(body.env),
        "exec": int(body.exec),
        "depends_on": json.dumps(body.depends_on),
        "labels": json.dumps(body.labels, sort_keys=True),
        "resources": json.dumps(body.resources),
        "needs": body.needs,
    }


def _insert(
    connection: Connection,
    described: Mapping[str, Any],
    wait: dependencies.Wait,
    now: float,
    terms: Terms,
) -> dict[str, Json]:
    """A new task. Returns what a look at it would find."""
    blank = {
        **dict.fromkeys(("assigned_agent_id", "assigned_machine_id", "cancel_reason"), ""),
        **dict.fromkeys(("progress_message", "error"), ""),
        **dict.fromkeys(("retry_count", "lost_attempts", "error_code", "awaited"), 0),
    }
    values = {
        "parent_id": None,
        **blank,
        **described,
        "created_at": now,
        "status": State.PENDING.value,
        "unmet": wait.unmet,
        "ready_for": None if wait.unmet else described["machine_id"],
    }
    insert_all(connection, tasks, [values])
    if not wait.unmet:
        ready = (described["machine_id"], described["needs"], described["priority"])
        messages.ready(connection, [ready])
    dependencies.enter(connection, described["id"], wait, now)
    if wait.failed:  # it has ended
        return look(connection, described["id"], now, terms)
    row = {**_UNSET, **values}
    told = {**summary(row, terms.disconnect_grace, now), **reading.result(connection, row)}
    return {**told, "runs": []}


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
    if query.user:
        statement = statement.where(tasks.c.user == query.user)
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
    row = row_of(connection, task_id)
    told = history.of_task(connection, task_id)
    return {
        **summary(row, terms.disconnect_grace, now),
        **reading.result(connection, row),
        "runs": [run(each, number) for number, each in enumerate(told, 1)],
    }


def row_of(connection: Connection, task_id: str) -> Mapping[str, Any]:
    row = connection.execute(_ONE, {"task": task_id}).mappings().first()
    if row is None:
        raise no_such_task(task_id)
    return dict(row)


def describe(
    connection: Connection, task_id: str, body: Description, now: float, terms: Terms
) -> dict[str, Json]:
    """Replace the whole description of a task that nobody holds."""
    if body.id not in (None, task_id):
        raise Problem(Code.INVALID, f"id: {body.id} is not the task of this address, {task_id}")
    wait = dependencies.look_up(connection, body.depends_on)
    choice.admit(connection, body.machine_id, body.needs)
    columns = {**_described(body), "unmet": wait.unmet}
    act(connection, task_id, Describe(columns=columns), now, terms)
    dependencies.forget(connection, task_id)
    dependencies.refuse_cycle(connection, task_id, wait)
    dependencies.enter(connection, task_id, wait, now)
    return look(connection, task_id, now, terms)


def cancel(
    connection: Connection, task_id: str, body: schemas.CancelCall, now: float, terms: Terms
) -> dict[str, Json]:
    task, effect = act(connection, task_id, Cancel(reason=body.reason), now, terms)
    if "cancel_requested_at" in effect.task:
        commands.order(connection, task, Action.CANCEL, body.reason, now)
    return look(connection, task_id, now, terms)


def remove(connection: Connection, task_id: str) -> dict[str, Json]:
    task, _ = load(connection, task_id)
    if task.status in HELD:
        raise Problem(Code.CONFLICT, "an agent holds the task; cancel it first")
    if waiting := dependencies.waiting_for(connection, task_id):
        what = "cancel or delete that one first"
        if task.status in FINAL:  # of so many that they are told in pieces
            what = "it is told of this one's end in a moment; try again then"
        raise Problem(Code.CONFLICT, f"task {waiting[:80]} waits for it; {what}")
    if task.unmet:
        dependencies.forget(connection, task_id)
    connection.execute(_NO_PIECES, {"task": task_id})
    for table in (outputs, runs, streams, commands_of, attempts):
        connection.execute(delete(table).where(table.c.task_id == task_id))
    connection.execute(delete(tasks).where(tasks.c.id == task_id))
    return {"id": task_id}
