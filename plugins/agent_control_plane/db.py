"""The database: reads on snapshots, writes answered after COMMIT, and words between servers.

Work is a plain function of a connection, inside one transaction. What writes
- changes nothing but the database: it may be run again, alone, from its beginning. On PostgreSQL
  that happens where another transaction was in its way (a deadlock, the same key inserted at the
  same moment), so "look, and insert what is missing" is right there too;
- locks what it decides on before it reads it, wherever `several_write(connection)`: a row that
  comes with a lock is the newest, but the rows joined to it are as old as the statement;
- tells other work what has become possible by `notify`, heard after COMMIT and only then.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from agent_control_plane.writers import MESSAGES, DatabaseRefuses, Work, Writers
from agent_core.errors import SettingsError

__all__ = ["Database", "DatabaseRefuses", "Heard", "Medium", "Work", "notify", "several_write"]

T = TypeVar("T")
READERS: Final = 4  # threads, and connections
MOST_SAID: Final = 3000  # bytes of a message; PostgreSQL carries 8000, and quotes double some
Heard = Callable[[Sequence[str] | None], None]  # None: some messages may have been missed


def notify(connection: Connection, message: str) -> None:
    """Say something short to every listener of every server on this database, after COMMIT.

    At most MOST_SAID bytes. The same twice in one transaction is heard once; of work that fails
    nothing is.
    """
    if len(message.encode()) > MOST_SAID:
        raise ValueError(f"{len(message)} characters are too long for a message: {message[:80]}")
    said: dict[str, None] | None = connection.info.get(MESSAGES)
    if said is not None:
        said[message] = None


def several_write(connection: Connection) -> bool:
    """Whether other transactions may write while this one does: rows must be locked."""
    return connection.dialect.name != "sqlite"


def password_of(url: str) -> str:
    """For the log to mask; "" if there is none."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return ""
    asked = parsed.query.get("password", "")
    return str(parsed.password or (asked if isinstance(asked, str) else asked[0]))


class Medium(Protocol):
    """What SQLite and PostgreSQL differ in."""

    @property
    def name(self) -> str:
        """For logs; without a password."""

    @property
    def reading(self) -> Engine: ...

    @property
    def writing(self) -> Engine: ...

    @property
    def writers(self) -> int:
        """Threads that write, each with its connection."""

    @property
    def at_once(self) -> int:
        """Jobs that may share a COMMIT."""

    def in_words(self, error: Exception) -> Exception:
        """What the database refuses for now as DatabaseRefuses; anything else as it is."""

    def again(self, error: Exception) -> bool:
        """Whether the transaction that failed so may succeed at once from its beginning."""

    def tell(self, connection: Connection, messages: Sequence[str]) -> None:
        """Tell other processes, at this transaction's COMMIT."""

    def listen(self, heard: Heard) -> Callable[[], Awaitable[None]]:
        """Bring what other processes tell to `heard`, in the running loop. Returns its end."""

    def close(self) -> None: ...


class Database:
    """One SQLite file, or one schema of a PostgreSQL database."""

    def __init__(self, medium: Medium) -> None:
        self.name = medium.name
        self._medium = medium
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-read")
        self._ears: dict[Heard, asyncio.AbstractEventLoop] = {}
        self._ears_lock = threading.Lock()
        self._deafen: Callable[[], Awaitable[None]] | None = None
        self._writers = Writers(medium, self._pass_on)

    @classmethod
    def open(cls, url: str) -> "Database":
        """Raises SettingsError for a URL that cannot be, StoreUnusable for a database that cannot.

        Its tables are made or brought up to date.
        """
        try:
            backend = make_url(url).get_backend_name()
        except ArgumentError:
            # It is not shown: it may hold a password all the same.
            raise SettingsError(f"server.database is no database URL; {KNOWN_URLS}") from None
        if backend in {"postgresql", "postgres"}:
            from agent_control_plane.postgres import Postgres  # noqa: PLC0415  # and its driver

            return cls(Postgres.open(url))
        from agent_control_plane.sqlite import Sqlite  # noqa: PLC0415

        return cls(Sqlite.open(url))

    async def read(self, work: Work[T]) -> T:
        """Run work on a snapshot, in a thread. It cannot write."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def write(self, work: Work[T]) -> T:
        """Run work in a transaction; returns after COMMIT, with what it returned or raised.

        An exception leaves nothing of this work behind. Raises Problem where the database refuses.
        """
        return await self._writers.write(work)

    def listen(self, heard: Heard) -> None:
        """Call `heard` in the running loop with what `notify` said, here and in other servers.

        Until the database is closed. It gets None where messages may have been missed: then
        anything may have become possible.
        """
        loop = asyncio.get_running_loop()
        with self._ears_lock:
            self._ears = {**self._ears, heard: loop}
        if self._deafen is None:
            self._deafen = self._medium.listen(self._from_others)

    async def close(self) -> None:
        """Write what was asked, then let go of the database."""
        if self._deafen is not None:
            await self._deafen()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._writers.close)
        await loop.run_in_executor(None, self._readers.shutdown)
        await loop.run_in_executor(None, self._medium.close)

    def _read(self, work: Work[T]) -> T:
        try:
            return self._on_snapshot(work)
        except Exception as error:
            if not (isinstance(error, DBAPIError) and error.connection_invalidated):
                raise self._medium.in_words(error) from error
        try:  # that connection had been dead for a while; this one is new
            return self._on_snapshot(work)
        except Exception as error:
            raise self._medium.in_words(error) from error

    def _on_snapshot(self, work: Work[T]) -> T:
        with self._medium.reading.connect() as connection, connection.begin():
            return work(connection)

    def _pass_on(self, messages: Sequence[str]) -> None:
        """To whoever listens in this process; from any thread."""
        for heard, loop in self._ears.items():
            try:
                loop.call_soon_threadsafe(heard, messages)
            except RuntimeError:  # that loop is closed: nobody listens any more
                continue

    def _from_others(self, messages: Sequence[str] | None) -> None:
        for heard in self._ears:
            heard(messages)


KNOWN_URLS: Final = (
    "one is sqlite:////var/lib/x/server.db or postgresql://user:password@host/database"
)
