"""The one thread that writes: what waits is written together, and answered after COMMIT."""

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from agent_core import StoreError, StoreFull
from agent_core_plugins.sqlite_store.failures import translated

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]

TOGETHER = 500  # pieces of work at most in one transaction
WAITING = 50_000  # pieces of work at most that wait for the disk


class _Job(NamedTuple):
    work: Work
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"
    then: Callable[[Any], None] | None


class _Done(NamedTuple):
    job: _Job
    result: Any
    error: Exception | None


class Writer:
    """Runs work on the write connection, in the order it was asked for.

    Each piece of work must bear being run again: a batch that could not be kept as a whole is
    rolled back and then written one by one, so that only what cannot be kept fails.
    """

    def __init__(self, db: sqlite3.Connection, path: str, *, waiting: int = WAITING) -> None:
        self._db = db
        self._room = waiting
        self._path = path
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sqlite_store writer", daemon=True)
        self._thread.start()

    async def do(
        self, work: Callable[[sqlite3.Connection], T], then: Callable[[T], None] | None = None
    ) -> T:
        """The work's result, once it is on disk. Raises StoreFull or StoreError: nothing is kept.

        Cancelling the wait cancels no work: whether it was kept is then for a read to tell. `then`
        is called with the result all the same, in the caller's thread, in the order of the commits.
        """
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future(), then)
        with self._changed:
            if self._closing:
                raise StoreError(f"the database {self._path} is closed; start the agent again")
            if len(self._jobs) >= self._room:
                raise StoreFull(
                    f"{self._room} changes wait for the disk under {self._path}; try again when it "
                    "is quicker"
                )
            self._jobs.append(job)
            self._changed.notify()
        return cast("T", await job.future)

    async def close(self) -> None:
        """Write what was asked for, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    # --- in the thread

    def _run(self) -> None:
        while jobs := self._next():
            _answer(self._written(jobs))

    def _next(self) -> list[_Job]:
        """What waits; none once the store is closed and all is done."""
        with self._changed:
            while not self._jobs and not self._closing:
                self._changed.wait()
            return [self._jobs.popleft() for _ in range(min(len(self._jobs), TOGETHER))]

    def _written(self, jobs: Sequence[_Job]) -> list[_Done]:
        """All in one transaction; if that cannot be kept, each in its own."""
        done: list[_Done] = []
        parts = [jobs]
        while parts:
            part = parts.pop(0)
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:  # nobody may write: waiting again for each is in vain
                rest = [job for later in (part, *parts) for job in later]
                return done + [_Done(job, None, translated(error, self._path)) for job in rest]
            try:
                results = [_Done(job, job.work(self._db), None) for job in part]
                self._db.execute("COMMIT")
            except Exception as error:
                self._undo()
                if len(part) == 1:
                    done.append(_Done(part[0], None, translated(error, self._path)))
                else:
                    parts = [[job] for job in part]
            else:
                done += results
        return done

    def _undo(self) -> None:
        """Some errors have rolled back already (a full disk), some not."""
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def _answer(done: Sequence[_Done]) -> None:
    """Wake the callers, each event loop once."""
    loops = {each.job.loop for each in done}
    for loop in loops:
        theirs = done if len(loops) == 1 else [each for each in done if each.job.loop is loop]
        with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits there
            loop.call_soon_threadsafe(_resolve, theirs)


def _resolve(done: Sequence[_Done]) -> None:
    for job, result, error in done:
        if job.then is not None and error is None:
            job.then(result)
        if job.future.done():
            continue  # its caller was cancelled
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
