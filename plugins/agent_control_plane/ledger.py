"""The book of tasks and attempts: load, apply, save; and the sweep of what time has changed."""

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    Table,
    Update,
    bindparam,
    select,
    update,
)

from agent_control_plane.events import Event, Tick
from agent_control_plane.lifecycle import apply
from agent_control_plane.states import Attempt, Effect, End, State, Task, Terms
from agent_control_plane.tables import attempts, tasks
from agent_core.api.http import Problem
from agent_core.api.wire import Code

SWEPT_AT_ONCE: Final = 100  # tasks in one transaction

TASK_COLUMNS: Final = [tasks.c[name] for name in Task.__slots__]
_ATTEMPT_COLUMNS: Final = [attempts.c[name].label(f"a_{name}") for name in Attempt.__slots__]
_BY_ATTEMPT = (
    select(*TASK_COLUMNS, *_ATTEMPT_COLUMNS)
    .select_from(
        tasks.outerjoin(
            attempts,
            (attempts.c.id == bindparam("attempt")) & (attempts.c.task_id == tasks.c.id),
        )
    )
    .where(tasks.c.id == bindparam("task"))
    .with_for_update(of=tasks)
)


OWN_ATTEMPT: Final = tasks.outerjoin(attempts, attempts.c.id == tasks.c.attempt_id)
# From the few attempts that an agent holds to their tasks, not from all tasks that are held.
OWN_TASK: Final = attempts.join(
    tasks, (tasks.c.id == attempts.c.task_id) & (tasks.c.attempt_id == attempts.c.id)
)


def columns_with(*more: ColumnElement[Any], source: FromClause = OWN_ATTEMPT) -> Select[Any]:
    """Each task with its own attempt, for read_task and read_attempt, and `more` in between."""
    return (
        select(*TASK_COLUMNS, *more, *_ATTEMPT_COLUMNS)
        .select_from(source)
        .with_for_update(of=tasks)
    )


_BY_ID = columns_with().where(tasks.c.id == bindparam("task"))
_DUE = (
    columns_with()
    .where(tasks.c.wake_at <= bindparam("now"))
    .order_by(tasks.c.wake_at)
    .limit(SWEPT_AT_ONCE)
)


def act(
    connection: Connection,
    task_id: str,
    event: Event,
    now: float,
    terms: Terms,
    *,
    attempt_id: str | None = None,
) -> tuple[Task, Effect]:
    """Apply an event and save what it changes. Raises Problem for a refusal, which saves nothing.

    Without an attempt_id the event is about the task's own attempt, if it has one.
    """
    task, attempt = load(connection, task_id, attempt_id)
    effect = apply(task, attempt, event, now, terms)
    if effect.code is not Code.OK:
        raise Problem(effect.code, effect.message)
    save(connection, (task, attempt, effect))
    return task, effect


def load(
    connection: Connection, task_id: str, attempt_id: str | None = None
) -> tuple[Task, Attempt | None]:
    """A task, and the attempt named or its own. Raises Problem if there is no such task."""
    if attempt_id is None:
        row = connection.execute(_BY_ID, {"task": task_id}).first()
    else:
        row = connection.execute(_BY_ATTEMPT, {"task": task_id, "attempt": attempt_id}).first()
    if row is None:
        raise no_such_task(task_id)
    return read_task(row), read_attempt(row)


def no_such_task(task_id: str) -> Problem:
    return Problem(Code.NO_SUCH_TASK, f"there is no task {task_id[:80]}")


Change = tuple[Task, Attempt | None, Effect]


def save(connection: Connection, *changes: Change) -> None:
    """The columns that the effects name, and no others; alike ones in one go."""
    _update_all(connection, tasks, [(task.id, effect.task) for task, _, effect in changes])
    ended = [(attempt.id, effect.attempt) for _, attempt, effect in changes if attempt is not None]
    _update_all(connection, attempts, ended)


def _update_all(
    connection: Connection, table: Table, changes: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row_id, columns in changes:
        if columns:
            alike.setdefault(tuple(columns), []).append({"_id": row_id, **plain(columns)})
    for names, rows in alike.items():
        connection.execute(_update(table, names), rows[0] if len(rows) == 1 else rows)


def sweep(connection: Connection, now: float, terms: Terms) -> int:
    """Give time its due: leases over, retries due. Returns how many tasks it looked at."""
    changes: list[Change] = []
    for row in connection.execute(_DUE, {"now": now}):
        task, attempt = read_task(row), read_attempt(row)
        changes.append((task, attempt, apply(task, attempt, Tick(), now, terms)))
    save(connection, *changes)
    return len(changes)


def read_task(row: Row[Any]) -> Task:
    values = row[: len(TASK_COLUMNS)]
    found = dict(zip(Task.__slots__, values, strict=True))
    return Task(**{**found, "status": State(found["status"])})


def read_attempt(row: Row[Any]) -> Attempt | None:
    found = dict(zip(Attempt.__slots__, row[-len(_ATTEMPT_COLUMNS) :], strict=True))
    if found["id"] is None:
        return None
    end = None if found["end"] is None else End(found["end"])
    return Attempt(**{**found, "older": bool(found["older"]), "end": end})


def plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values as any driver takes them: enums by their value."""
    return {k: v.value if isinstance(v, Enum) else v for k, v in changes.items()}


# Each move has its own few columns: as many statements as moves, each compiled once.
@lru_cache(maxsize=512)
def _update(table: Table, columns: tuple[str, ...]) -> Update:
    values: dict[str, Any] = {name: bindparam(name) for name in columns}
    return update(table).where(table.c.id == bindparam("_id")).values(values)
