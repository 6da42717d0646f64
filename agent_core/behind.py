"""What happened and is not stored yet: gathered for a moment, then kept in one transaction."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agent_core.backoff import Backoff
from agent_core.clock import Clock
from agent_core.errors import Conflict, StoreError
from agent_core.lifecycle import FINAL
from agent_core.log import about_nothing, get
from agent_core.models import Change, Key
from agent_core.protocols import Store
from agent_core.signals import Bell

GATHER = 0.005  # seconds between two transactions, if nobody waits for one: what comes meanwhile
AT_LEAST = 0.001  # seconds; an end that comes with its beginning is stored with it
TOGETHER = 200  # changes at most in one transaction


@dataclass(kw_only=True, slots=True)
class _Entry:
    """A change that waits for the store, and who waits for it."""

    change: Change
    keep: bool
    waiting: "list[asyncio.Future[None]]"
    told: bool = False  # that it cannot be kept now

    @property
    def key(self) -> Key:
        return self.change.before.key

    def resolve(self, error: Exception | None = None) -> None:
        for future in self.waiting:
            if future.done():
                continue  # whoever waited was cancelled
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # seen: it is for whoever awaits it, if anybody does


class Behind:
    """Has the store keep changes in the order in which they happened, many at a time.

    What happened already is asked for until the store keeps it, and waits here meanwhile. That is
    never more than has begun: no run begins before its start was stored.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        stored: Callable[[], None],
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._store = store
        self._clock = clock
        self._stored = stored  # called when events were stored
        self._backoff = backoff()
        self._queue: list[_Entry] = []
        self._hurry = False  # somebody in the queue waits to go on
        self._gathering = Bell()
        self._storing: asyncio.Task[None] | None = None
        self._stored_at = float("-inf")  # loop time of the last transaction's beginning
        self._stuck: list[_Entry] = []  # what could not be kept, and what happened after it
        self._retrying: asyncio.Task[None] | None = None
        self._log = get("store")

    def put(self, change: Change, *, soon: bool, keep: bool) -> "asyncio.Future[None]":
        """Resolves when it is stored. `soon`: somebody waits for that before anything goes on.

        Raises Conflict if the task stood elsewhere, StoreError if it could not be stored; the
        latter never where `keep` is set: for what has happened already.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(_Entry(change=change, keep=keep, waiting=[future]))
        self._hurry = self._hurry or soon
        if self._storing is None:
            self._storing = asyncio.create_task(
                self._store_all(), name="store what happened", context=about_nothing()
            )
        elif soon:
            self._gathering.ring()
        return future

    def hurry(self) -> None:
        """Somebody waits by now for what was put here in no hurry."""
        self._hurry = bool(self._queue)
        self._gathering.ring()

    async def close(self) -> None:
        """Store nothing more."""
        self._queue.clear()
        self._stuck.clear()
        jobs = {job for job in (self._storing, self._retrying) if job}
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs)

    # --- in the background

    async def _store_all(self) -> None:
        try:
            while self._queue:
                if not self._hurry:
                    await self._gather()
                self._hurry = False
                self._stored_at = asyncio.get_running_loop().time()
                batch, self._queue = self._queue[:TOGETHER], self._queue[TOGETHER:]
                if self._stuck:
                    batch = self._free_to_go(batch)
                if rest := await self._keep(_joined(batch)):
                    self._ask_again(rest)
        finally:
            self._storing = None

    async def _gather(self) -> None:
        """Until the last transaction is a while ago, or somebody waits."""
        since = asyncio.get_running_loop().time() - self._stored_at
        await self._gathering.rings(max(GATHER - since, AT_LEAST))

    def _free_to_go(self, batch: Sequence[_Entry]) -> list[_Entry]:
        """Those that follow nothing that is stuck; the others wait behind that."""
        stuck = {entry.key for entry in self._stuck}
        self._stuck += [entry for entry in batch if entry.key in stuck]
        return [entry for entry in batch if entry.key not in stuck]

    def _ask_again(self, entries: Sequence[_Entry]) -> None:
        self._stuck += entries
        if self._retrying is None:
            self._retrying = asyncio.create_task(
                self._ask(), name="store what is stuck", context=about_nothing()
            )

    async def _ask(self) -> None:
        try:
            while self._stuck:
                await self._clock.sleep(self._backoff.next())
                tried = self._stuck[:TOGETHER]
                rest = await self._keep(_joined(tried))
                self._stuck[: len(tried)] = rest  # they stood there all the time, for their order
                if not rest:
                    self._backoff.reset()
        finally:
            self._retrying = None

    async def _keep(self, batch: Sequence[_Entry]) -> list[_Entry]:
        """All in one transaction; if that cannot be kept, each in its own. Returns the rest."""
        error = await self._try(batch)
        if error is None:
            return []
        rest: list[_Entry] = []
        blocked: set[Key] = set()
        for entry in batch:
            if entry.key not in blocked and len(batch) > 1:
                error = await self._try([entry])
            if entry.key not in blocked and error is None:
                continue
            if entry.keep:
                self._tell(entry, error)
                rest.append(entry)
                blocked.add(entry.key)
            else:
                entry.resolve(error)
        return rest

    def _tell(self, entry: _Entry, error: StoreError | None) -> None:
        if not entry.told:
            words = "a task's state cannot be saved, trying again"
            self._log.error(words, task=entry.key.task_id, why=str(error))
        entry.told = True

    async def _try(self, batch: Sequence[_Entry]) -> StoreError | None:
        """One transaction; whoever waits hears of it unless it is an error of the store."""
        try:
            kept = await self._store.save_all([entry.change for entry in batch])
            answered = list(zip(batch, kept, strict=True))
        except StoreError as error:
            return error
        except Exception as error:  # a bug: it ends the agent, by whoever waits
            for entry in batch:
                entry.resolve(error)
            return None
        for entry, done in answered:
            before = entry.change.before
            words = f"task {before.id} is not {before.status.value} any more"
            entry.resolve(None if done else Conflict(words))
        if any(done and entry.change.events for entry, done in answered):
            self._stored()
        return None


def _joined(entries: Iterable[_Entry]) -> list[_Entry]:
    """What follows a change to the same task becomes one with it, where both are facts."""
    joined: list[_Entry] = []
    last: dict[Key, _Entry] = {}
    for entry in entries:
        former = last.get(entry.key)
        if former and former.keep and entry.keep and _follows(former.change, entry.change):
            former.change = _both(former.change, entry.change)
            former.waiting += entry.waiting
        else:
            joined.append(entry)
            last[entry.key] = entry
    return joined


def _follows(first: Change, second: Change) -> bool:
    """Whether the second begins where the first ends, and one row can hold both."""
    status = first.changes.get("status", first.before.status)
    start_id = first.changes.get("start_id", first.before.start_id)
    same = (status, start_id) == (second.before.status, second.before.start_id)
    return same and not (first.ended_run and second.ended_run)


def _both(first: Change, second: Change) -> Change:
    changes = {**first.changes, **second.changes}
    if changes.get("status") in FINAL:
        changes.pop("handle", None)  # by which a run is found again: there is none any more
    return Change(
        before=first.before,
        changes=changes,
        events=(*first.events, *second.events),
        ended_run=first.ended_run or second.ended_run,
    )
