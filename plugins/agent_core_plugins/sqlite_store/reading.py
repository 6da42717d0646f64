"""Events with their outcomes, read from the rows of the outbox and of their tasks and runs."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from agent_core import Answer, Event, EventKind, Outcome, Receipt
from agent_core_plugins.sqlite_store import rows
from agent_core_plugins.sqlite_store import statements as sql
from agent_core_plugins.sqlite_store.window import BYTES


def first(found: Iterable[Any], limit: int, wanted: Callable[[rows.Row], bool]) -> list[rows.Row]:
    """The first of them that are wanted; the rest is not even read."""
    kept: list[rows.Row] = []
    if limit <= 0:
        return kept
    for row in found:
        if wanted(row):
            kept.append(row)
            if len(kept) == limit:
                break
    return kept


def with_outcomes(db: sqlite3.Connection, found: Sequence[rows.Row]) -> list[Event]:
    """As many of the events as fit into the bound with what their tasks and runs printed."""
    events: list[Event] = []
    size = 0
    for row in found:
        outcome = _outcome(db, row)
        if outcome is not None:
            size += len(outcome.stdout) + len(outcome.stderr)
            if events and size > BYTES:
                break
        events.append(rows.as_event(row, outcome))
    return events


def _outcome(db: sqlite3.Connection, event: rows.Row, *, output: bool = True) -> Outcome | None:
    kind, task_id, attempt_id, run_no = event[0], event[1], event[2], event[4]
    if kind == EventKind.RUN:
        statement = sql.RUN_OUTCOME if output else sql.RUN_END
        row = db.execute(statement.text, (task_id, attempt_id, run_no)).fetchone()
    elif kind in {EventKind.COMPLETE, EventKind.RELEASE}:
        statement = sql.TASK_OUTCOME if output else sql.TASK_END
        row = db.execute(statement.text, (task_id, attempt_id)).fetchone()
    else:
        return None
    return rows.as_outcome(row) if row else None


def dead_letter(db: sqlite3.Connection, row: rows.Row) -> tuple[Event, Receipt]:
    event = rows.as_event(row, _outcome(db, row, output=False))
    receipt = Receipt(seq=event.seq, answer=Answer.REFUSED, code=row[9], message=row[10])
    return event, receipt
