"""Rows as what they stand for, and back: tasks with their attempts, read and written in bulk."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    Row,
    Select,
    Table,
    UpdateBase,
    bindparam,
    insert,
    select,
    update,
)

from agent_control_plane import messages
from agent_control_plane.states import Attempt, Effect, End, State, Task
from agent_control_plane.tables import attempts, tasks

TASK_COLUMNS: Final = [tasks.c[name] for name in Task._fields]
ATTEMPT_COLUMNS: Final = [attempts.c[name].label(f"a_{name}") for name in Attempt._fields]
_TASK_WIDTH: Final = len(TASK_COLUMNS)
_ATTEMPT_WIDTH: Final = len(ATTEMPT_COLUMNS)
_STATUS: Final = Task._fields.index("status")
_HELD_AS: Final = Task._fields.index("held_as")
_STATES: Final = {state.value: state for state in State}
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


def attempts_with_tasks(count: int) -> Select[Any]:
    """So many attempts, each with its task, for read_task and read_attempt."""
    both = attempts.join(tasks, tasks.c.id == attempts.c.task_id)
    these = attempts.c.id.in_([bindparam(name) for name in _names(count)])
    return columns_with(source=both).where(these)


def load_attempts(connection: Connection, ids: Sequence[str]) -> Sequence[Row[Any]]:
    """What attempts_with_tasks finds of these, of which there is at least one."""
    # One named twice is found once; a text for each number would be compiled a hundred times.
    count = 1 << (len(ids) - 1).bit_length()
    filled = (*ids, *repeat(ids[0], count - len(ids)))
    statement = _driver_select(connection.dialect, count)
    given: Any = filled
    if statement.pick is None:
        given = dict(zip(_names(count), filled, strict=True))
    return connection.exec_driver_sql(statement.text, given).all()


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
    alike: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for row_id, columns in changes:
        if columns:
            alike.setdefault(tuple(columns), []).append((*columns.values(), row_id))
    for names, rows in alike.items():
        _run(connection, _driver_update(connection.dialect, table, names), (*names, "_id"), rows)


def insert_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """New rows, each with the columns of the first one in their order."""
    if rows:
        names = tuple(rows[0])
        given = [tuple(row.values()) for row in rows]
        _run(connection, _driver_insert(connection.dialect, table, names), names, given)


def _run(
    connection: Connection,
    statement: "_Prepared",
    names: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    # Text and numbers need no conversion, whose bookkeeping would cost more than the statement.
    plain_rows = [
        tuple([value._value_ if isinstance(value, Enum) else value for value in row])
        for row in rows
    ]
    given: Any
    if statement.pick is None:
        given = [dict(zip(names, row, strict=True)) for row in plain_rows]
    else:
        given = [statement.pick(row) for row in plain_rows]
    connection.exec_driver_sql(statement.text, given)


def read_task(row: Row[Any]) -> Task:
    values = list(row[:_TASK_WIDTH])
    values[_STATUS] = _STATES[values[_STATUS]]
    if values[_HELD_AS] is not None:
        values[_HELD_AS] = _STATES[values[_HELD_AS]]
    return Task._make(values)


def read_attempt(row: Row[Any]) -> Attempt | None:
    found = Attempt._make(row[-_ATTEMPT_WIDTH:])
    if found.id is None:
        return None
    return found._replace(
        end=None if found.end is None else End(found.end),
        older=bool(found.older),
        logged=bool(found.logged),
    )


def plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values as any driver takes them: enums by their value."""
    return {k: v._value_ if isinstance(v, Enum) else v for k, v in changes.items()}


class _Prepared(NamedTuple):
    """A statement as the driver takes it."""

    text: str
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None  # None = by name


# Each move has its own few columns: as many statements as moves, each compiled once.
@lru_cache(maxsize=512)
def _driver_update(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> _Prepared:
    values: dict[str, Any] = {name: bindparam(name) for name in columns}
    statement = update(table).where(table.c.id == bindparam("_id")).values(values)
    return _prepared(statement, dialect, (*columns, "_id"))


@lru_cache(maxsize=64)
def _driver_insert(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> _Prepared:
    statement = insert(table).values({name: bindparam(name) for name in columns}).inline()
    return _prepared(statement, dialect, columns)


@lru_cache(maxsize=32)
def _driver_select(dialect: Dialect, count: int) -> _Prepared:
    return _prepared(attempts_with_tasks(count), dialect, _names(count))


@lru_cache(maxsize=32)
def _names(count: int) -> tuple[str, ...]:
    return tuple(f"_{number}" for number in range(count))


def _prepared(
    statement: UpdateBase | Select[Any], dialect: Dialect, names: tuple[str, ...]
) -> _Prepared:
    compiled = statement.compile(dialect=dialect)
    places = getattr(compiled, "positiontup", None)
    return _Prepared(str(compiled), places and itemgetter(*map(names.index, places)))
