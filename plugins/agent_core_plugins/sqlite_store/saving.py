"""One change to one task, as the statements that keep it."""

import sqlite3
from collections.abc import Callable

from agent_core import Change
from agent_core_plugins.sqlite_store import rows
from agent_core_plugins.sqlite_store import statements as sql


def written(change: Change) -> Callable[[sqlite3.Connection], list[int] | None]:
    """Made ready in the caller's thread; gives the numbers of the events.

    None, and nothing done, if the task is otherwise by now.

    Raises StoreError for a field that no move may change.
    """
    before = change.before
    columns = rows.changed_columns(change.changes or {"status": before.status})
    move = sql.move(frozenset(columns))
    columns["key_task"], columns["key_attempt"] = before.key
    columns["old_status"], columns["old_start_id"] = before.status.value, before.start_id
    values = move.values(columns)
    events = [sql.ADD_EVENT.values(rows.event_row(event)) for event in change.events]
    ended = rows.run_row(before.key, change.ended_run) if change.ended_run else None

    def write(db: sqlite3.Connection) -> list[int] | None:
        if db.execute(move.text, values).rowcount != 1:
            return None
        if ended is not None:
            db.execute(sql.ADD_RUN.text, ended)
        return [int(db.execute(sql.ADD_EVENT.text, told).lastrowid or 0) for told in events]

    return write
