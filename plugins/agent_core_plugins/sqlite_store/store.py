"""The Store of the agent: what is asked of it, as work for the writer and the reader."""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agent_core import (
    Answer,
    Change,
    Event,
    Key,
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
from agent_core_plugins.sqlite_store.reading import dead_letter, first, with_outcomes
from agent_core_plugins.sqlite_store.saving import written
from agent_core_plugins.sqlite_store.window import Window
from agent_core_plugins.sqlite_store.writer import Writer

T = TypeVar("T")

LIST_LIMIT = 10_000  # rows at most of one answer, whatever was asked for


class SqliteTasks:
    """`agent_core.Store` on one SQLite file, until it is closed."""

    def __init__(self, opened: Opened) -> None:
        self.stream = opened.stream
        self._opened = opened
        self._writer = Writer(opened.writing, opened.path)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="sqlite_store reader")
        self._closing: asyncio.Future[None] | None = None
        self._window = Window()
        self._reading = asyncio.Lock()  # of the outbox

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

        def kept(numbers: Sequence[list[int] | None]) -> None:
            for change, given in zip(changes, numbers, strict=True):
                if given:
                    self._window.kept(change.events, given)

        done = await self._writer.do(lambda db: [move(db) for move in moves], kept)
        return [numbers is not None for numbers in done]

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        refused = [each for each in receipts if each.answer is Answer.REFUSED]
        final = [each.seq for each in receipts if each.answer is not Answer.RETRY]
        if not final:
            return
        ranges = _ranges(final)

        def work(db: sqlite3.Connection) -> None:
            for each in refused:
                db.execute(sql.BURY.text, (int(each.code), each.message, each.seq))
            for each_range in ranges:
                db.execute(sql.SETTLE_RANGE.text, each_range)

        await self._writer.do(work, lambda _: self._window.settled(final))

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
            keys = first(found, limit, lambda key: key not in skip)
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
        async with self._reading:
            found, enough = self._window.first(limit, skip, skip_sources)
            while not enough and self._window.more and (space := self._window.space) > 0:
                await self._widen(space)
                found, enough = self._window.first(limit, skip, skip_sources)
            if found or limit <= 0 or not self._window.more:
                return found  # what is beyond is told when these are
            return await self._beyond(limit, skip, skip_sources)

    async def _widen(self, space: int) -> None:
        """Read on in the table where memory ends."""
        after = self._window.upto

        def work(db: sqlite3.Connection) -> tuple[list[Event], bool]:
            rest = first(db.execute(sql.GET_OUTBOX.text, (after,)), space, lambda row: True)
            events = with_outcomes(db, rest)
            return events, len(events) < space and len(events) == len(rest)

        self._window.begin_reading()
        found: list[Event] = []
        all_of_it = False
        try:
            found, all_of_it = await self._read(work)
        finally:
            self._window.end_reading(found, all_of_it=all_of_it)

    async def _beyond(
        self, limit: int, skip: Collection[Key], skip_sources: Collection[str]
    ) -> list[Event]:
        """From the table alone: memory is full of events that are not wanted now."""
        after = self._window.upto

        def wanted(row: rows.Row) -> bool:
            return row[3] not in skip_sources and (row[1], row[2]) not in skip

        def work(db: sqlite3.Connection) -> list[Event]:
            found = first(db.execute(sql.GET_OUTBOX.text, (after,)), limit, wanted)
            return with_outcomes(db, found)

        return await self._read(work)

    async def dead_letters(self, *, limit: int = 1000) -> list[tuple[Event, Receipt]]:
        limit = min(limit, LIST_LIMIT)

        def work(db: sqlite3.Connection) -> list[tuple[Event, Receipt]]:
            found = db.execute(sql.GET_DEAD_LETTERS.text, (limit,))
            return [dead_letter(db, row) for row in found.fetchall()]

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


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, first and last of each."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and number <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges
