"""SQLite as the database of one server: its engines, its settings, and what it refuses in words."""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from agent_control_plane import sqlite_file
from agent_control_plane.db import READERS, DatabaseRefuses, Heard
from agent_control_plane.sqlite_file import BUSY_TIMEOUT, FileLock
from agent_core.api.wire import Code

_PASSING: Final = {
    sqlite3.SQLITE_FULL: "no room on the server's disk",
    sqlite3.SQLITE_BUSY: "the database is locked by another program",
    sqlite3.SQLITE_LOCKED: "the database is locked by another program",
    sqlite3.SQLITE_IOERR: "the server's disk cannot be read or written",
    sqlite3.SQLITE_READONLY: "the server's database is read-only",
    sqlite3.SQLITE_CANTOPEN: "the server's database cannot be opened",
}


class Sqlite:
    """One file, used by one server. There is one writer: jobs in its line share a COMMIT."""

    writers = 1
    at_once = 128

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._lock = FileLock(path)
        try:
            sqlite_file.inspect(path)
            self.reading = _engine(path, "BEGIN", "PRAGMA query_only = ON")
            self.writing = _engine(path, "BEGIN IMMEDIATE")
        except BaseException:
            self._lock.close()
            raise
        try:
            sqlite_file.prepare(path, self.writing)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, url: str) -> "Sqlite":
        """Raises SettingsError for a URL that cannot be, StoreUnusable for a file that cannot."""
        path = sqlite_file.file_of(url)
        try:
            sqlite_file.make_private(path)
            return cls(path)
        except DBAPIError as error:
            raise sqlite_file.unusable(path, error.orig or error) from None
        except (sqlite3.Error, OSError) as error:  # the former of a setting made while connecting
            raise sqlite_file.unusable(path, error) from None

    def in_words(self, error: Exception) -> Exception:
        code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
        words = None if code is None else _PASSING.get(code & 0xFF)
        return error if words is None else DatabaseRefuses(Code.FULL, f"{words}; try again later")

    def again(self, error: Exception) -> bool:
        return False  # a single writer is in nobody's way

    def tell(self, connection: Connection, messages: Sequence[str]) -> None:
        """No other server uses this file."""

    def listen(self, heard: Heard) -> Callable[[], Awaitable[None]]:
        async def end() -> None:
            """Nothing was begun."""

        return end

    def close(self) -> None:
        self.reading.dispose()
        self.writing.dispose()
        self._lock.close()


def _engine(path: Path, begin: str, *pragmas: str) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=QueuePool,
        pool_size=READERS,
        max_overflow=0,
        connect_args={
            "check_same_thread": False,
            "isolation_level": None,  # or the driver begins transactions of its own
            "timeout": BUSY_TIMEOUT,
        },
    )
    settings = (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA temp_store = MEMORY",
        f"PRAGMA journal_size_limit = {64 * 2**20}",
        *pragmas,
    )

    @event.listens_for(engine, "connect")
    def _connect(driver: sqlite3.Connection, _record: object) -> None:
        for setting in settings:
            driver.execute(setting).close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.execute(begin)

    return engine
