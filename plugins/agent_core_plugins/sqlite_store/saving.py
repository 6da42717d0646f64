"""One change to one task, as the statements that keep it."""

import sqlite3
from collections.abc import Callable
from functools import cache
from typing import Any

from agent_core import Change, StoreError
from agent_core_plugins.sqlite_store import rows
from agent_core_plugins.sqlite_store import statements as sql

Coders = tuple[tuple[str, Callable[[Any], tuple[object, ...]]], ...]


def written(change: Change) -> Callable[[sqlite3.Connection], list[int] | None]:
    """Made ready in the caller's thread; gives the numbers of the events.

    None, and nothing done, if the task is otherwise by now.

    Raises StoreError for a field that no move may change.
    """
    before = change.before
    changes = change.changes or {"status": before.status}
    move, coders = _move(tuple(changes))
    values = [column for name, coded in coders for column in coded(changes[name])]
    values += (*before.key, before.status.value, before.start_id)
    events = [rows.event_row(event) for event in change.events]
    ended = rows.run_row(before.key, change.ended_run) if change.ended_run else None

    def write(db: sqlite3.Connection) -> list[int] | None:
        if db.execute(move, values).rowcount != 1:
            return None
        if ended is not None:
            db.execute(sql.ADD_RUN.text, ended)
        return [int(db.execute(sql.ADD_EVENT.text, told).lastrowid or 0) for told in events]

    return write


@cache  # two dozen moves, each with its own fields
def _move(fields: tuple[str, ...]) -> tuple[str, Coders]:
    """The statement for a change of these fields, and how the values of each are written."""
    if foreign := set(fields) - rows.MOVING.keys():
        raise StoreError(f"a move cannot change {', '.join(sorted(foreign))} of a task")
    columns = [column for name in fields for column in rows.MOVING[name][0]]
    coders = tuple((name, rows.MOVING[name][1]) for name in fields)
    return sql.move(tuple(columns)).text, coders
