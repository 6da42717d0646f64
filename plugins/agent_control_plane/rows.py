"""Rows as what they stand for, and back: tasks with their attempts, read and written in bulk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    Row,
    Select,
    Table,
    Update,
    bindparam,
    select,
    update,
)

from agent_control_plane import messages
from agent_control_plane.states import Attempt, Effect, End, State, Task
from agent_control_plane.tables import attempts, tasks

TASK_COLUMNS: Final = [tasks.c[name] for name in Task.__slots__]
ATTEMPT_COLUMNS: Final = [attempts.c[name].label(f"a_{name}") for name in Attempt.__slots__]
OWN_ATTEMPT: Final = tasks.outerjoin(attempts, attempts.c.id == tasks.c.attempt_id)
# From the few attempts that an agent holds to their tasks, not from all tasks that are held.
OWN_TASK: Final = attempts.join(
    tasks, (tasks.c.id == attempts.c.task_id) & (tasks.c.attempt_id == attempts.c.id)
)


def columns_with(*more: ColumnElement[Any], source: FromClause = OWN_ATTEMPT) -> Select[Any]:
    """Each task with its own attempt, for read_task and read_attempt, and `more` in between."""
    return (
        select(*TASK_COLUMNS, *more, *ATTEMPT_COLUMNS).select_from(source).with_for_update(of=tasks)
    )


def attempts_with_tasks(ids: BindParameter[Any]) -> Select[Any]:
    """These attempts, each with its task, for read_task and read_attempt."""
    both = attempts.join(tasks, tasks.c.id == attempts.c.task_id)
    return columns_with(source=both).where(attempts.c.id.in_(ids))


Change = tuple[Task, Attempt | None, Effect]


def write(connection: Connection, *changes: Change) -> None:
    """The columns that the effects name, and no others; alike ones in one go."""
    _update_all(connection, tasks, [(task.id, effect.task) for task, _, effect in changes])
    ended = [(attempt.id, effect.attempt) for _, attempt, effect in changes if attempt is not None]
    _update_all(connection, attempts, ended)
    messages.ready(connection, _ready(changes))
    for task, _, effect in changes:
        if task.watched_until is not None and "status" in effect.task:
            messages.say(connection, messages.Written(task.id))
        if effect.task.get("due_at") is not None and effect.task.get("status") is State.PENDING:
            messages.say(connection, messages.Due(effect.task["due_at"]))


def _ready(changes: Iterable[Change]) -> Iterator[tuple[str, str, int]]:
    for task, _, effect in changes:
        ready_for = effect.task.get("ready_for")
        if ready_for is not None:
            needs = effect.task.get("needs", task.needs)
            yield ready_for, needs, effect.task.get("priority", task.priority)


def _update_all(
    connection: Connection, table: Table, changes: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row_id, columns in changes:
        if columns:
            alike.setdefault(tuple(columns), []).append({"_id": row_id, **plain(columns)})
    for names, rows in alike.items():
        # Text and numbers need no conversion, whose bookkeeping would cost more than the update.
        statement, places = _driver_update(connection.dialect, table, names)
        given: Any = rows
        if places is not None:
            given = [tuple([row[name] for name in places]) for row in rows]
        connection.exec_driver_sql(statement, given)


def read_task(row: Row[Any]) -> Task:
    values = row[: len(TASK_COLUMNS)]
    found = dict(zip(Task.__slots__, values, strict=True))
    found["status"] = State(found["status"])
    if found["held_as"] is not None:
        found["held_as"] = State(found["held_as"])
    return Task(**found)


def read_attempt(row: Row[Any]) -> Attempt | None:
    found = dict(zip(Attempt.__slots__, row[-len(ATTEMPT_COLUMNS) :], strict=True))
    if found["id"] is None:
        return None
    if found["end"] is not None:
        found["end"] = End(found["end"])
    found["older"], found["logged"] = bool(found["older"]), bool(found["logged"])
    return Attempt(**found)


def plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values as any driver takes them: enums by their value."""
    return {k: v._value_ if isinstance(v, Enum) else v for k, v in changes.items()}


# Each move has its own few columns: as many statements as moves, each compiled once.
@lru_cache(maxsize=512)
def _update(table: Table, columns: tuple[str, ...]) -> Update:
    values: dict[str, Any] = {name: bindparam(name) for name in columns}
    return update(table).where(table.c.id == bindparam("_id")).values(values)


@lru_cache(maxsize=512)
def _driver_update(
    dialect: Dialect, table: Table, columns: tuple[str, ...]
) -> tuple[str, Sequence[str] | None]:
    """The same as the driver takes it, and the order of its values where they have no names."""
    compiled = _update(table, columns).compile(dialect=dialect)
    return str(compiled), getattr(compiled, "positiontup", None)
