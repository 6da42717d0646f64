"""Local tasks that wait for other tasks: held back until those have ended, and ended with them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from agent_core import endings
from agent_core.api.wire import Code
from agent_core.backoff import Backoff
from agent_core.clock import Clock
from agent_core.errors import Conflict, NotAccepted, StoreError
from agent_core.feed import NEVER
from agent_core.lifecycle import FINAL, Status
from agent_core.log import get
from agent_core.models import Key, Outcome, Task
from agent_core.protocols import Store

MOST_IDS = 100  # that one task may depend on
MOST_WAITING = 10_000  # tasks at once
AT_ONCE = 100  # of them that are released together


@dataclass(slots=True)
class Waiter:
    """A stored task whose due time has no date yet."""

    missing: set[str]  # ids that it waits for
    stored: bool  # before that its end cannot be saved either
    read: bool = False  # what its dependencies were when it came is known
    failed: str = ""  # why it will never run


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """What is done with a task that waits no more."""

    met: Callable[[Task], None]  # it is due by now, and stored so
    failed: Callable[[Task, Outcome], Awaitable[None]]
    backoff: Callable[[], Backoff] = field(default=Backoff)


class Dependencies:
    """Knows by its id who waits for a task. Nothing is polled: `ended` is told of each end.

    The store holds all of it: a held-back task is pending with a due time of NEVER, so after a
    restart what it waits for is looked up, and whatever was released before is due.
    """

    def __init__(self, store: Store, clock: Clock, ends: Ends, *, most: int = MOST_WAITING) -> None:
        self._store = store
        self._clock = clock
        self._ends = ends
        self._most = most
        self._waiters: dict[Key, Waiter] = {}
        self._by_id: dict[str, set[Key]] = {}  # who waits for it
        self._look: dict[Key, None] = {}  # whose case may be decided, in order
        self._wake = asyncio.Event()
        self._log = get("dependencies")

    def __len__(self) -> int:
        return len(self._waiters)

    async def check(self, task: Task) -> None:
        """Raises NotAccepted for what can never be met. A new id can be in no cycle but its own."""
        if len(set(task.depends_on)) > MOST_IDS:
            raise NotAccepted(f"depends_on: at most {MOST_IDS} ids", Code.INVALID)
        if len(self._waiters) >= self._most:
            raise NotAccepted(
                f"{self._most} tasks wait for others already; submit it when some have ended",
                Code.FULL,
            )
        for each in dict.fromkeys(task.depends_on):
            if each == task.id:
                raise NotAccepted("depends_on: a task cannot wait for itself", Code.INVALID)
            if await self._store.get(Key(each, "")) is None:
                raise NotAccepted(f"depends_on: no task {each} was submitted here", Code.INVALID)

    def hold_back(self, task: Task, *, stored: bool) -> None:
        """From now on no end of what it depends on is missed. Raises NotAccepted for the second."""
        if task.key in self._waiters:
            raise NotAccepted(f"a task {task.id} was submitted here before", Code.CONFLICT)
        waiter = Waiter(missing=set(task.depends_on), stored=stored)
        self._waiters[task.key] = waiter
        for each in waiter.missing:
            self._by_id.setdefault(each, set()).add(task.key)
        if stored:
            self._look_at(task.key)

    def stored(self, key: Key) -> None:
        """It is: what it depends on is looked up, once."""
        if waiter := self._waiters.get(key):
            waiter.stored = True
            self._look_at(key)

    def drop(self, key: Key) -> None:
        """It waits no more."""
        waiter = self._waiters.pop(key, None)
        self._look.pop(key, None)
        for each in waiter.missing if waiter else ():
            self._let_go(each, key)

    def ended(self, task: Task) -> None:
        """A local task's end is committed. Never before: who waits for it may start at once."""
        for key in list(self._by_id.get(task.id, ())):
            self._learn(key, task)
            if self._waiters[key].stored:
                self._look_at(key)

    async def run(self) -> None:
        """Release and end those whose case is decided, many together. Ends only by an error."""
        backoff = self._ends.backoff()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._look:
                keys = list(self._look)[:AT_ONCE]
                for key in keys:
                    del self._look[key]
                done = await asyncio.gather(*map(self._decide, keys), return_exceptions=True)
                await self._again(keys, done, backoff)

    async def _again(
        self, keys: Sequence[Key], done: Sequence[BaseException | None], backoff: Backoff
    ) -> None:
        failed = [error for error in done if error is not None]
        if not failed:
            backoff.reset()
            return
        for failure in failed:
            if not isinstance(failure, StoreError):
                raise failure
        self._log.error("waiting tasks cannot be released now, trying again", why=str(failed[0]))
        await self._clock.sleep(backoff.next())
        for key, error in zip(keys, done, strict=True):
            if error is not None and key in self._waiters:
                self._look_at(key)

    async def _decide(self, key: Key) -> None:
        """Release it, end it, or let it go on waiting."""
        waiter = self._waiters.get(key)
        if waiter is None:
            return
        if not waiter.read:
            await self._read(key, waiter)
        if waiter.missing and not waiter.failed:
            return
        task = await self._store.get(key)
        if task is not None and task.status is Status.PENDING:
            with contextlib.suppress(Conflict):  # somebody cancelled it
                await self._end_wait(task, waiter)
        self.drop(key)

    async def _end_wait(self, task: Task, waiter: Waiter) -> None:
        if waiter.failed:
            await self._ends.failed(task, endings.dependency(waiter.failed))
        elif await self._store.save(task, {"due_at": 0.0}):
            self._ends.met(await self._store.get(task.key) or task)

    async def _read(self, key: Key, waiter: Waiter) -> None:
        for each in sorted(waiter.missing):
            task = await self._store.get(Key(each, ""))
            if task is None:
                waiter.failed = f"dependency {each} did not complete: nobody knows it any more"
            elif task.status in FINAL:
                self._learn(key, task)
        waiter.read = True

    def _learn(self, key: Key, ended: Task) -> None:
        waiter = self._waiters[key]
        if ended.status is Status.COMPLETED:
            waiter.missing.discard(ended.id)
            self._let_go(ended.id, key)
        else:
            waiter.failed = waiter.failed or endings.chain(ended)

    def _let_go(self, task_id: str, key: Key) -> None:
        keys = self._by_id.get(task_id, set())
        keys.discard(key)
        if not keys:
            self._by_id.pop(task_id, None)

    def _look_at(self, key: Key) -> None:
        self._look[key] = None
        self._wake.set()


def held_back(task: Task) -> bool:
    """Whether it waits for others, by what is stored of it."""
    return not task.source and bool(task.depends_on) and task.due_at >= NEVER
