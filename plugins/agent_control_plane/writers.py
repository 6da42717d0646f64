"""The threads that write: jobs wait in a line, share a COMMIT, and are answered after it."""

import asyncio
import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, Transaction
from sqlalchemy.exc import DBAPIError

from agent_core import log
from agent_core.api.http import Problem
from agent_core.api.wire import Code

if TYPE_CHECKING:
    from agent_control_plane.db import Medium

_log = log.get("database")
T = TypeVar("T")
Work = Callable[[Connection], T]
MESSAGES: Final = "remotegpu_messages"  # of the transaction that a connection is in
WRITES_WAITING: Final = 2000  # jobs; more are refused as "try later"
TRIES: Final = 8  # of a transaction that others were in the way of
_PAUSE: Final = 0.005  # seconds, doubled with each try


class DatabaseRefuses(Problem):
    """The database cannot be used at the moment; what was asked has not been done."""


class _Job(NamedTuple):
    work: Work[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]


class _Done(NamedTuple):
    job: _Job
    value: Any = None
    error: Exception | None = None


class Writers:
    """Takes work from any loop; `heard` gets what committed work said by notify."""

    def __init__(self, medium: "Medium", heard: Callable[[Sequence[str]], None]) -> None:
        self._medium = medium
        self._heard = heard
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._refusing = False
        self._refusing_lock = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"db-write-{number}", daemon=True)
            for number in range(medium.writers)
        ]
        for thread in self._threads:
            thread.start()

    async def write(self, work: Work[T]) -> T:
        """See Database.write."""
        if self._closed or self._jobs.qsize() >= WRITES_WAITING:
            raise Problem(Code.FULL, "the server has more to write than it can; try again later")
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future())
        self._jobs.put(job)
        try:
            value: T = await asyncio.shield(job.done)  # what was asked is done in any case
        except asyncio.CancelledError:
            job.done.add_done_callback(_look_at)
            raise
        return value

    def close(self) -> None:
        """Write what was asked, and end the threads."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        line = _Line(self._medium)
        goes_on = True
        while goes_on:
            jobs, goes_on = self._next()
            if jobs:
                done = line.run(jobs)
                self._say(done)
                _tell(done)
            if line.said:
                said, line.said = list(line.said), {}
                self._heard(said)
        line.close()

    def _next(self) -> tuple[list[_Job], bool]:
        """What waits, at least one, as far as it may share a COMMIT; and whether more may come."""
        jobs: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            while len(jobs) < self._medium.at_once:
                job = self._jobs.get(block=not jobs)
                if job is None:
                    return jobs, False
                jobs.append(job)
        return jobs, True

    def _say(self, done: Sequence[_Done]) -> None:
        """Each change once, for whoever runs the server."""
        why = next((str(d.error) for d in done if isinstance(d.error, DatabaseRefuses)), "")
        with self._refusing_lock:
            changed, self._refusing = self._refusing is not bool(why), bool(why)
        if changed and why:
            _log.error(
                "nothing can be written, requests are put off", why=why, database=self._medium.name
            )
        elif changed:
            _log.info("the database can be written again", database=self._medium.name)


class _Line:
    """One thread's connection, opened when it is needed and again when it broke."""

    def __init__(self, medium: "Medium") -> None:
        self._medium = medium
        self._connection: Connection | None = None
        self.said: dict[str, None] = {}  # by what was committed since somebody looked

    def run(self, jobs: Sequence[_Job]) -> list[_Done]:
        """All in one transaction; if that breaks as a whole, each in its own."""
        if len(jobs) == 1:
            return [self._alone(jobs[0])]
        try:
            done = self._together(jobs)
        except DatabaseRefuses as error:  # perhaps it was kept: doing it again might be twice
            return [_Done(job, error=error) for job in jobs]
        except Exception:
            return [self._alone(job) for job in jobs]
        return [self._alone(each.job) if self._again(each.error) else each for each in done]

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # of a connection that broke
                connection.close()

    def _alone(self, job: _Job) -> _Done:
        """In a transaction of its own, again from its beginning while others are in its way."""
        for number in range(TRIES):
            try:
                with self._transaction() as connection:
                    value = job.work(connection)
                return _Done(job, value=value)
            except Exception as error:
                if number == TRIES - 1 or not self._again(error):
                    return _Done(job, error=self._medium.in_words(error))
            time.sleep(_PAUSE * number * random.random())
        raise AssertionError("the last try returns")

    def _together(self, jobs: Sequence[_Job]) -> list[_Done]:
        """Raises if nothing of it was kept; an error here may be one to try again."""
        with self._transaction() as connection:
            return [self._within(connection, job) for job in jobs]

    def _within(self, connection: Connection, job: _Job) -> _Done:
        """One job of a common transaction. Raises if that is no more."""
        driver: Any = connection.connection.dbapi_connection
        said = connection.info[MESSAGES]
        before = dict(said)
        driver.execute("SAVEPOINT job")
        try:
            done = _Done(job, value=job.work(connection))
        except Exception as error:
            driver.execute("ROLLBACK TO job")  # fails where a full disk rolled back everything
            said.clear()
            said.update(before)
            done = _Done(job, error=self._medium.in_words(error))
        driver.execute("RELEASE job")
        return done

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        connection = self._connection or self._medium.writing.connect()
        self._connection = connection
        said: dict[str, None] = {}
        transaction = connection.begin()
        try:
            connection.info[MESSAGES] = said
            yield connection
            if said:
                self._medium.tell(connection, list(said))
            _commit(transaction)
        except Exception:
            with contextlib.suppress(Exception):  # of a connection that broke
                transaction.rollback()
            if connection.invalidated or connection.closed:
                self.close()
            raise
        self.said.update(said)

    def _again(self, error: Exception | None) -> bool:
        return error is not None and self._medium.again(error)


def _commit(transaction: Transaction) -> None:
    try:
        transaction.commit()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseRefuses(
                Code.FULL,
                "the connection to the database broke before it said whether this is kept; "
                "look, or ask again",
            ) from error
        raise


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


def _look_at(done: asyncio.Future[Any]) -> None:
    """Nobody waits any more; without this asyncio would complain of an error not looked at."""
    if not done.cancelled():
        done.exception()
