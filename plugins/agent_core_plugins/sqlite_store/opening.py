"""Opening the database file: its lock, its connections, and what to do when it cannot be opened."""

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agent_core import HeldElsewhere, StoreUnusable, hold
from agent_core_plugins.sqlite_store import statements as sql
from agent_core_plugins.sqlite_store.failures import damaged, unusable
from agent_core_plugins.sqlite_store.steps import STEPS, Step, bring_up_to_date

BUSY = 5.0  # seconds to wait for another program that holds the file
CHECKED = 32 * 2**20  # bytes; a larger file is checked page by page as it is read, not at start
WAL_KEPT = 16 * 2**20  # bytes of log that stay on disk after a burst


class Opened(NamedTuple):
    """A database that is ours alone."""

    path: str
    writing: sqlite3.Connection
    reading: sqlite3.Connection
    stream: str
    lock: int

    def close(self) -> None:
        """The lock last: who takes it next finds the log written back."""
        self.reading.close()
        self.writing.close()
        os.close(self.lock)


def open_database(path: Path, *, steps: Sequence[Step] = STEPS, busy: float = BUSY) -> Opened:
    """Make or take the database. Raises StoreUnusable or StoreFull with what to do about it."""
    name = str(path)
    lock = -1
    held: list[sqlite3.Connection] = []
    try:
        real = path.resolve()  # two names of one file have one lock
        lock = _take_lock(Path(f"{real}.lock"), name)
        existed = _make_private(real)
        writing = _connect(real, busy)
        held.append(writing)
        _prepare(writing, name, real.stat().st_size if existed else 0, steps)
        reading = _connect(real, busy)
        held.append(reading)
        reading.execute("PRAGMA query_only = 1")
        stream = str(reading.execute(sql.GET_STREAM.text).fetchone()[0])
    except (sqlite3.Error, OSError, StoreUnusable) as error:
        for connection in held:
            connection.close()
        if lock >= 0:
            os.close(lock)
        raise unusable(error, name) from error
    return Opened(name, writing, reading, stream, lock)


def _prepare(db: sqlite3.Connection, path: str, size: int, steps: Sequence[Step]) -> None:
    if size <= CHECKED:
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise StoreUnusable(damaged(path, verdict))
    bring_up_to_date(db, path, steps)
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreUnusable(
            f"the database {path} is on a file system that cannot keep a write-ahead log (a "
            "network mount?); name a file on a local disk by sqlite_store.path"
        )
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA journal_size_limit = {WAL_KEPT}")


def _connect(path: Path, busy: float) -> sqlite3.Connection:
    # Used by one thread at a time, made by another.
    return sqlite3.connect(
        path, timeout=busy, isolation_level=None, check_same_thread=False, cached_statements=256
    )


def _make_private(path: Path) -> bool:
    """Others must not read environments and outputs; -wal and -shm take over these rights."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        return True
    return False


def _take_lock(path: Path, database: str) -> int:
    try:
        return hold(path)
    except HeldElsewhere as error:
        raise StoreUnusable(
            f"the database {database} is used by another agent (pid {error.pid}); stop "
            "that one, or name another file by sqlite_store.path"
        ) from None
