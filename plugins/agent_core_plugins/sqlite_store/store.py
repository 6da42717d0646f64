"""The Store of the agent: what is asked of it, as work for the writer and the reader."""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from agent_core import (
    Answer,
    Change,
    Event,
    EventKind,
    Key,
    Outcome,
    Receipt,
    Status,
    StoreError,
    Task,
    TaskRun,
)
from agent_core_plugins.sqlite_store import rows
from agent_core_plugins.sqlite_store import statements as sql
from agent_core_plugins.sqlite_store.failures import translated
from agent_core_plugins.sqlite_store.opening import Opened
from agent_core_plugins.sqlite_store.saving import written
from agent_core_plugins.sqlite_store.writer import Writer

T = TypeVar("T")

LIST_LIMIT = 10_000  # rows at most of one answer, whatever was asked for
OUTBOX_BYTES = 8 * 2**20  # of output at most in one answer, unless one event alone has more


class SqliteTasks:
    """`agent_core.Store` on one SQLite file, until it is closed."""

    def __init__(self, opened: Opened) -> None:
        self.stream = opened.stream
        self._opened = opened
        self._writer = Writer(opened.writing, opened.path)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="sqlite_store reader")
        self._closing: asyncio.Future[None] | None = None

    # --- writes

    async def add(self, tasks: Sequence[Task], facts: Mapping[str, str]) -> list[Task]:
        found = [rows.task_row(task) for task in tasks]
        facts = dict(facts)

        def work(db: sqlite3.Connection) -> list[Task]:
            for item in facts.items():
                db.execute(sql.SET_FACT.text, item)
            add = sql.ADD_TASK.text
            return [
                task
                for task, row in zip(tasks, found, strict=True)
                if db.execute(add, row).rowcount == 1
            ]

        return await self._writer.do(work)

    async def save(
        self,
        before: Task,
        changes: Mapping[str, object],
        event: Event | None = None,
        ended_run: TaskRun | None = None,
    ) -> bool:
        events = (event,) if event else ()
        change = Change(before=before, changes=changes, events=events, ended_run=ended_run)
        return (await self.save_all([change]))[0]

    async def save_all(self, changes: Sequence[Change]) -> list[bool]:
        moves = [written(change) for change in changes]
        return await self._writer.do(lambda db: [move(db) for move in moves])

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        answered = [receipt for receipt in receipts if receipt.answer is not Answer.RETRY]
        if not answered:
            return

        def work(db: sqlite3.Connection) -> None:
            for receipt in answered:
                if receipt.answer is Answer.REFUSED:
                    db.execute(sql.BURY.text, (int(receipt.code), receipt.message, receipt.seq))
                db.execute(sql.SETTLE.text, (receipt.seq,))

        await self._writer.do(work)

    async def set_fact(self, name: str, value: str) -> None:
        await self._writer.do(lambda db: db.execute(sql.SET_FACT.text, (name, value)) and None)

    # --- reads

    async def get(self, key: Key) -> Task | None:
        def work(db: sqlite3.Connection) -> Task | None:
            row = db.execute(sql.GET_TASK.text, key).fetchone()
            return rows.as_task(row) if row else None

        return await self._read(work)

    async def tasks(
        self, statuses: Collection[Status] = (), *, limit: int = 1000, after: Key | None = None
    ) -> list[Task]:
        limit = min(limit, LIST_LIMIT)
        statement = sql.listed(frozenset(statuses or Status), after is not None)

        def work(db: sqlite3.Connection) -> list[Task]:
            given: dict[str, object] = {"limit": limit}
            if after is not None:
                row = db.execute(sql.CREATED_AT.text, after).fetchone()
                if row is None:
                    return []
                given |= zip(sql.PAGE_START, (row[0], *after), strict=True)
            found = db.execute(statement.text, statement.values(given))
            return [rows.as_task(row) for row in found]

        return await self._read(work)

    async def due(
        self, now: float, *, limit: int, skip: Collection[Key] = frozenset()
    ) -> list[Task]:
        limit = min(limit, LIST_LIMIT)

        def work(db: sqlite3.Connection) -> list[Task]:
            found = db.execute(sql.DUE.text, (now,))
            keys = _first(found, limit, lambda key: key not in skip)
            get = sql.GET_LISTED.text
            return [rows.as_task(db.execute(get, key).fetchone()) for key in keys]

        return await self._read(work)

    async def next_due(self, now: float) -> float | None:
        def work(db: sqlite3.Connection) -> float | None:
            (earliest,) = db.execute(sql.NEXT_DUE.text, (now,)).fetchone()
            return None if earliest is None else float(earliest)

        return await self._read(work)

    async def runs(self, key: Key) -> list[TaskRun]:
        return await self._read(
            lambda db: [rows.as_run(row) for row in db.execute(sql.GET_RUNS.text, key)]
        )

    async def outbox(
        self,
        *,
        limit: int,
        skip: Collection[Key] = frozenset(),
        skip_sources: Collection[str] = frozenset(),
    ) -> list[Event]:
        limit = min(limit, LIST_LIMIT)

        def wanted(row: rows.Row) -> bool:
            return row[3] not in skip_sources and (row[1], row[2]) not in skip

        def work(db: sqlite3.Connection) -> list[Event]:
            found = _first(db.execute(sql.GET_OUTBOX.text), limit, wanted)
            return _with_outcomes(db, found)

        return await self._read(work)

    async def dead_letters(self, *, limit: int = 1000) -> list[tuple[Event, Receipt]]:
        limit = min(limit, LIST_LIMIT)

        def work(db: sqlite3.Connection) -> list[tuple[Event, Receipt]]:
            found = db.execute(sql.GET_DEAD_LETTERS.text, (limit,))
            return [_dead_letter(db, row) for row in found.fetchall()]

        return await self._read(work)

    async def get_fact(self, name: str) -> str | None:
        row = await self._read(lambda db: db.execute(sql.GET_FACT.text, (name,)).fetchone())
        return row[0] if row else None

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closing is not None:
            raise StoreError(f"the database {self._opened.path} is closed; start the agent again")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, self._snapshot, work)

    def _snapshot(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """In the reader's thread: one moment of the database, whatever is written meanwhile."""
        db = self._opened.reading
        try:
            db.execute("BEGIN")
            try:
                return work(db)
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        except Exception as error:
            raise translated(error, self._opened.path) from error

    # --- the end

    async def close(self) -> None:
        """Also after a close that was cancelled, and more than once."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._writer.close()
        await asyncio.to_thread(self._reader.shutdown)
        await asyncio.to_thread(self._opened.close)


def _first(found: Iterable[Any], limit: int, wanted: Callable[[rows.Row], bool]) -> list[rows.Row]:
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


def _with_outcomes(db: sqlite3.Connection, found: Sequence[rows.Row]) -> list[Event]:
    """As many of the events as fit into the bound with what their tasks and runs printed."""
    events: list[Event] = []
    size = 0
    for row in found:
        outcome = _outcome(db, row)
        if outcome is not None:
            size += len(outcome.stdout) + len(outcome.stderr)
            if events and size > OUTBOX_BYTES:
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


def _dead_letter(db: sqlite3.Connection, row: rows.Row) -> tuple[Event, Receipt]:
    event = rows.as_event(row, _outcome(db, row, output=False))
    receipt = Receipt(seq=event.seq, answer=Answer.REFUSED, code=row[9], message=row[10])
    return event, receipt
