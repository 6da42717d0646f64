"""The database: reads in threads, writes on one thread with group commit, answers after COMMIT."""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from agent_control_plane import sqlite_file
from agent_control_plane.sqlite_file import BUSY_TIMEOUT, FileLock
from agent_core import log
from agent_core.api.http import Problem
from agent_core.api.wire import Code

_log = log.get("database")
T = TypeVar("T")
Work = Callable[[Connection], T]
READERS: Final = 4  # threads, and connections
WRITES_AT_ONCE: Final = 128  # jobs that share a commit
WRITES_WAITING: Final = 2000  # jobs; more are refused as "try later"
_PASSING: Final = {
    sqlite3.SQLITE_FULL: "no room on the server's disk",
    sqlite3.SQLITE_BUSY: "the database is locked by another program",
    sqlite3.SQLITE_LOCKED: "the database is locked by another program",
    sqlite3.SQLITE_IOERR: "the server's disk cannot be read or written",
    sqlite3.SQLITE_READONLY: "the server's database is read-only",
    sqlite3.SQLITE_CANTOPEN: "the server's database cannot be opened",
}


class DiskRefuses(Problem):
    """The database cannot be used at the moment; what was asked has not been done."""


class _Job(NamedTuple):
    work: Work[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]


class _Done(NamedTuple):
    job: _Job
    value: Any = None
    error: Exception | None = None


class Database:
    """One SQLite file. Work is a plain function of a connection, inside one transaction.

    What writes may be run twice: it changes nothing but the database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path)
        self._look_at(path)
        self._reading = _engine(path, "BEGIN", "PRAGMA query_only = ON")
        self._writing = _engine(path, "BEGIN IMMEDIATE")
        self._connection = self._begin()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-read")
        self._refusing = False  # the writer thread's alone
        self._writer = threading.Thread(target=self._serve, name="db-write", daemon=True)
        self._writer.start()
        self._closed = False

    @classmethod
    def open(cls, url: str) -> "Database":
        """Raises SettingsError for a URL that cannot be, StoreUnusable for a file that cannot."""
        path = sqlite_file.file_of(url)
        try:
            sqlite_file.make_private(path)
            return cls(path)
        except DBAPIError as error:
            raise sqlite_file.unusable(path, error.orig or error) from None
        except sqlite3.Error as error:  # of a setting made while connecting
            raise sqlite_file.unusable(path, error) from None
        except OSError as error:
            raise sqlite_file.unusable(path, error) from None

    def _look_at(self, path: Path) -> None:
        try:
            sqlite_file.inspect(path)
        except BaseException:
            self._lock.close()
            raise

    def _begin(self) -> Connection:
        try:
            sqlite_file.prepare(self._writing)
            return self._writing.connect()
        except BaseException:
            self._dispose()
            raise

    async def read(self, work: Work[T]) -> T:
        """Run work on a snapshot, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def write(self, work: Work[T]) -> T:
        """Run work in a transaction; returns after COMMIT, with what it returned or raised.

        An exception leaves nothing of this work behind. Raises Problem where the disk refuses.
        """
        if self._closed or self._jobs.qsize() >= WRITES_WAITING:
            raise Problem(Code.FULL, "the server has more to write than it can; try again later")
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future())
        self._jobs.put(job)
        try:
            value: T = await asyncio.shield(job.done)  # what was asked is done in any case
        except asyncio.CancelledError:
            job.done.add_done_callback(_heard)
            raise
        return value

    async def close(self) -> None:
        """Write what was asked, then let go of the file."""
        self._closed = True
        self._jobs.put(None)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._writer.join)
        await loop.run_in_executor(None, self._readers.shutdown)
        self._connection.close()
        self._dispose()

    def _dispose(self) -> None:
        self._reading.dispose()
        self._writing.dispose()
        self._lock.close()

    def _read(self, work: Work[T]) -> T:
        try:
            with self._reading.connect() as connection, connection.begin():
                return work(connection)
        except (DBAPIError, sqlite3.Error) as error:
            raise _in_words(error) from error

    def _serve(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs = [first]
            stop = False
            while len(jobs) < WRITES_AT_ONCE and not stop:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                stop = job is None
                if job is not None:
                    jobs.append(job)
            done = self._run(jobs)
            self._say(done)
            _tell(done)
            if stop:
                return

    def _say(self, done: Sequence[_Done]) -> None:
        """Each change once, for whoever runs the server."""
        why = next((str(d.error) for d in done if isinstance(d.error, DiskRefuses)), "")
        if why and not self._refusing:
            _log.error("nothing can be written, requests are put off", why=why, path=self.path)
        elif self._refusing and not why:
            _log.info("the database can be written again", path=self.path)
        self._refusing = bool(why)

    def _run(self, jobs: Sequence[_Job]) -> list[_Done]:
        """All in one transaction; if that breaks as a whole, each in its own."""
        begun = False
        try:
            with self._connection.begin():
                begun = True
                done = [self._one(job) for job in jobs]
        except Exception as error:  # whoever waits must hear of it
            if begun and len(jobs) > 1:
                return [each for job in jobs for each in self._run([job])]
            return [_Done(job, error=_in_words(error)) for job in jobs]
        return done

    def _one(self, job: _Job) -> _Done:
        """One job within the common transaction. Raises if that is no more."""
        driver: Any = self._connection.connection.dbapi_connection
        driver.execute("SAVEPOINT job")
        try:
            done = _Done(job, value=job.work(self._connection))
        except Exception as error:
            if not driver.in_transaction:  # a full disk can roll back everything
                raise
            driver.execute("ROLLBACK TO job")
            done = _Done(job, error=_in_words(error))
        driver.execute("RELEASE job")
        return done


def _tell(done: Sequence[_Done]) -> None:
    """Resolve the futures, in one wake-up for each loop that waits."""
    for loop in {each.job.loop for each in done}:
        mine = [each for each in done if each.job.loop is loop]
        try:
            loop.call_soon_threadsafe(_settle, mine)
        except RuntimeError:  # that loop is closed: nobody waits any more
            continue


def _settle(done: Sequence[_Done]) -> None:
    for job, value, error in done:
        if job.done.done():
            continue
        if error is None:
            job.done.set_result(value)
        else:
            job.done.set_exception(error)


def _heard(done: asyncio.Future[Any]) -> None:
    """Nobody waits any more; without this asyncio would complain of an error not looked at."""
    if not done.cancelled():
        done.exception()


def _in_words(error: Exception) -> Exception:
    """What the disk refused as a problem that may pass; anything else as it is."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    words = None if code is None else _PASSING.get(code & 0xFF)
    return error if words is None else DiskRefuses(Code.FULL, f"{words}; try again later")


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
        connection.exec_driver_sql(begin)

    return engine
