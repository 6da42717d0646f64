"""Rows as what they stand for, and back: tasks with their attempts, read and written in bulk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from itertools import repeat
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, FromClause, Select, Table, bindparam, select

from agent_control_plane import messages
from agent_control_plane.prepared import Query, Row, inserting, several, updating
from agent_control_plane.states import Attempt, Effect, End, State, Task
from agent_control_plane.tables import attempts, tasks

TASK_COLUMNS: Final = [tasks.c[name] for name in Task._fields]
ATTEMPT_COLUMNS: Final = [attempts.c[name].label(f"a_{name}") for name in Attempt._fields]
_TASK_WIDTH: Final = len(TASK_COLUMNS)
_ATTEMPT_WIDTH: Final = len(ATTEMPT_COLUMNS)
_STATUS: Final = Task._fields.index("status")
_HELD_AS: Final = Task._fields.index("held_as")
_STATES: Final = {state.value: state for state in State}
_ENDS: Final = {end.value: end for end in End}
_ENUMS: Final = frozenset({"status", "held_as", "end", "error_code"})
_END, _OLDER, _LOGGED = (Attempt._fields.index(name) for name in ("end", "older", "logged"))
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
    these = attempts.c.id.in_([bindparam(name) for name in several(count)])
    return columns_with(source=both).where(these)


@lru_cache(maxsize=32)
def _attempts_query(count: int) -> Query:
    return Query(attempts_with_tasks(count))


def load_attempts(connection: Connection, ids: Sequence[str]) -> Sequence[Row]:
    """What attempts_with_tasks finds of these, of which there is at least one."""
    # One named twice is found once; a text for each number would be compiled a hundred times.
    count = 1 << (len(ids) - 1).bit_length()
    filled = (*ids, *repeat(ids[0], count - len(ids)))
    given = dict(zip(several(count), filled, strict=True))
    return _attempts_query(count).rows(connection, given)


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
        statement = updating(connection.dialect, table, names)
        statement.run(connection, _plain_rows(names, rows))


def insert_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """New rows, each with the columns of the first one in their order."""
    if rows:
        names = tuple(rows[0])
        given = [tuple(row.values()) for row in rows]
        inserting(connection.dialect, table, names).run(connection, _plain_rows(names, given))


def _plain_rows(names: tuple[str, ...], rows: Sequence[Row]) -> Sequence[Row]:
    """Values as any driver takes them: enums, which stand in few columns, by their value."""
    places = [place for place, name in enumerate(names) if name in _ENUMS]
    if not places:
        return rows
    found = []
    for row in rows:
        values = list(row)
        for place in places:
            if isinstance(values[place], Enum):
                values[place] = values[place]._value_
        found.append(tuple(values))
    return found


def read_task(row: Row) -> Task:
    values = list(row[:_TASK_WIDTH])
    values[_STATUS] = _STATES[values[_STATUS]]
    if values[_HELD_AS] is not None:
        values[_HELD_AS] = _STATES[values[_HELD_AS]]
    return Task._make(values)


def read_attempt(row: Row) -> Attempt | None:
    values = list(row[-_ATTEMPT_WIDTH:])
    if values[0] is None:
        return None
    if values[_END] is not None:
        values[_END] = _ENDS[values[_END]]
    values[_OLDER] = bool(values[_OLDER])
    values[_LOGGED] = bool(values[_LOGGED])
    return Attempt._make(values)


def plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values as any driver takes them: enums by their value."""
    return {k: v._value_ if isinstance(v, Enum) else v for k, v in changes.items()}
