"""The loop that gives each free slot the task whose turn it is."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from agent_core import attempts, endings, recovery
from agent_core.api.wire import Code
from agent_core.clock import Instant
from agent_core.endings import Stop
from agent_core.errors import Conflict, StoreError
from agent_core.feed import Feed
from agent_core.lifecycle import FINAL, Move, Status
from agent_core.log import about, get
from agent_core.models import Key, Lease, Outcome, Reason, Task
from agent_core.protocols import Held, Scheduler, Store
from agent_core.resources import Free
from agent_core.runner import Runner
from agent_core.signals import Signal
from agent_core.workbench import Workbench, consider

WINDOW = 1000  # tasks that wait in memory; the rest waits in the store
ABANDON_LIMIT = 5.0  # seconds for the runners to let go


class Worker:
    """Knows what waits, what runs and how many slots are free. The store knows the truth."""

    def __init__(
        self, bench: Workbench, store: Store, scheduler: Scheduler, max_workers: int
    ) -> None:
        self._bench = bench
        self._store = store
        self._scheduler = scheduler
        self._max_workers = max_workers
        self._log = get("worker")
        self._held: dict[Key, Task] = {}  # every task in memory that is not final
        self._waiting: set[Key] = set()  # those of them that the scheduler has
        self._parked: set[Key] = set()  # whose turn came when they could not begin
        self._runners: dict[Key, Runner] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wake = asyncio.Event()
        self.changed = Signal()  # there may be more room than there was
        self._feed = Feed(store, bench.clock)
        self._leaving = False

    # --- what others ask

    @property
    def room(self) -> int:
        """Tasks that may be claimed now: the free slots and two to have ready, minus what waits."""
        if self._leaving or len(self._held) >= WINDOW:
            return 0
        free = max(0, self._max_workers - len(self._runners))
        return max(0, free + 2 - len(self._waiting) - len(self._parked))

    def held(self, source: str) -> list[Held]:
        """The attempts of one source that are not final, each as it stands now."""
        now = (
            self._runners[key].task if key in self._runners else task
            for key, task in self._held.items()
        )
        return [self._bench.leases.held(task) for task in now if task.source == source]

    def runner(self, key: Key) -> Runner | None:
        return self._runners.get(key)

    # --- what comes in

    async def recover(self) -> None:
        """Take up every stored task without an end: those that had a start get a slot at once."""
        rooms = await asyncio.to_thread(recovery.rooms, self._bench.runs_dir)
        kept: set[str] = set()
        async for task in recovery.unfinished(self._store):
            kept.add(task.start_id)
            if task.status is not Status.PENDING:
                self._start(task)
            elif task.source:
                self._held[task.key] = task
        await asyncio.to_thread(recovery.sweep, self._bench.runs_dir, rooms, kept)
        await self._take_in()

    async def admit(self, tasks: Sequence[Task]) -> None:
        """New tasks, stored already: refuse what may not run here, let the rest wait."""
        for task in tasks:
            self._held.setdefault(task.key, task)
        for older in attempts.replaced(self._held, tasks):
            try:
                await self.cancel(older, code=Code.ATTEMPT_LOST, reason=attempts.LOST)
            except StoreError as error:  # whoever granted the task anew says it again
                self._log.error("an end cannot be saved now", task=older.task_id, why=str(error))
        for task in tasks:
            try:
                _, refusal = await consider(self._bench, task, Instant.now(self._bench.clock))
                if refusal and task.key in self._held:
                    await self._end(task, Move.REFUSE, refusal)
            except StoreError as error:
                # It is judged again before it starts, so nothing is lost by letting it wait.
                self._log.error("a refusal cannot be saved now", task=task.id, why=str(error))
            if task.key in self._held:  # as it is by now: it may have begun, or been cancelled
                self._again(self._held[task.key])
        self._wake.set()

    async def cancel(self, key: Key, *, code: int, reason: str) -> bool:
        """End a task wherever it stands. False if it is final, unknown, or left to run on."""
        stop = Stop(reason=Reason.CANCELLED, code=code, words=reason)
        task = self._held.get(key) or await self._store.get(key)
        while task and task.status not in FINAL:
            if runner := self._runners.get(key):
                runner.stop(stop)
                return True
            if self._leaving and task.status is not Status.PENDING:
                return False  # what was left to run is not ours any more
            try:
                await self._end(task, Move.CANCEL, endings.unbegun(stop))
            except Conflict:  # it began, or ended, while we looked
                task = await self._store.get(key)
            else:
                return True
        return False

    def renewed(self, key: Key, lease: Lease) -> None:
        """The attempt is ours for longer; if it waited for that, it waits for a slot again."""
        task = self._held.get(key)
        if task is None:
            return
        runner = self._runners.get(key)
        task = runner.task if runner else task
        lease = self._bench.leases.renew(task, lease)
        if lease.stop_after is not None:
            self._in_background(self._bench.leases.save(self._store, task), f"lease {task.id}")
        self._unpark(key)

    # --- the loop

    async def run(self) -> None:
        """Start what may start, whenever something has changed. Ends only by an error."""
        while True:
            self._wake.clear()
            await self._take_in()
            self._fill()
            wake = asyncio.ensure_future(self._wake.wait())
            events: set[asyncio.Future[Any]] = {wake, self._failed}
            try:
                await asyncio.wait(
                    events,
                    timeout=self._feed.until_due(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                wake.cancel()
            if self._failed.done():
                self._failed.result()

    async def _take_in(self) -> None:
        """Let tasks of the store whose time has come wait here for a slot."""
        if self._leaving:
            return
        known = self._waiting | self._parked | self._runners.keys()
        for task in await self._feed.take(WINDOW - len(self._waiting), known):
            self._held.setdefault(task.key, task)
            self._wait(task)

    def _fill(self) -> None:
        """Give every free slot a task, if there is one that may begin."""
        while self._waiting and not self._leaving:
            free = self._max_workers - len(self._runners)
            if free <= 0:
                break
            running = [runner.task for runner in self._runners.values()]
            planned = dict.fromkeys(
                task.key for task in self._scheduler.next(running, Free(slots=free)).start
            )
            chosen = [key for key in planned if key in self._waiting][:free]
            if not chosen:
                break
            for key in chosen:
                self._unwait(key)
                task = self._held[key]
                if self._bench.leases.over(task):
                    self._log.info("its lease is over, waiting for a renewal", task=task.id)
                    self._parked.add(key)
                elif attempts.one_runs(task, [runner.task for runner in self._runners.values()]):
                    self._log.info("an older attempt at it is still here", task=task.id)
                    self._parked.add(key)
                else:
                    self._start(task)
        if self.room:
            self.changed.send()

    def _start(self, task: Task) -> None:
        self._held[task.key] = task
        runner = Runner(self._bench, task)
        self._runners[task.key] = runner
        self._in_background(self._drive(runner), f"runner {task.id}")

    def _in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        job = asyncio.create_task(work, name=name)
        self._background.add(job)
        job.add_done_callback(self._driven)

    async def _drive(self, runner: Runner) -> None:
        key = runner.task.key
        task: Task | None
        with about(task=key.task_id, attempt=key.attempt_id):
            try:
                await runner.run()
                task = runner.task
            except Conflict as error:
                self._log.warning("somebody else was first; reading the task again", why=str(error))
                task = await recovery.reread(self._bench, self._store, key)
        self._runners.pop(key, None)
        for newer in [each for each in self._parked if each.task_id == key.task_id]:
            self._unpark(newer)
        if task is None or task.status in FINAL:
            self._forget(key)
        else:
            self._held[key] = task
            self._again(task)
        self._wake.set()

    def _forget(self, key: Key) -> None:
        self._held.pop(key, None)
        self._bench.leases.drop(key)

    def _again(self, task: Task) -> None:
        """It waits, at once or from its due time on; what had a start is looked for."""
        if self._leaving or task.key in self._runners:
            return  # left to itself while the agent leaves
        if task.status is not Status.PENDING:
            self._start(task)
        elif task.due_at <= self._bench.clock.wall():
            self._wait(task)
        else:
            self._feed.look_at(task.due_at)

    def _driven(self, job: asyncio.Task[None]) -> None:
        self._background.discard(job)
        if not job.cancelled() and (error := job.exception()) and not self._failed.done():
            self._failed.set_exception(error)

    def _wait(self, task: Task) -> None:
        if len(self._waiting) >= WINDOW:
            self._feed.look_again()
            return
        self._waiting.add(task.key)
        self._scheduler.add(task)

    def _unwait(self, key: Key) -> None:
        self._waiting.discard(key)
        self._parked.discard(key)
        self._scheduler.remove(key)

    def _unpark(self, key: Key) -> None:
        """If it was set aside: it waits for a slot again."""
        if key in self._parked:
            self._parked.discard(key)
            self._wait(self._held[key])
            self._wake.set()

    async def _end(self, task: Task, move: Move, outcome: Outcome) -> None:
        """Bring a task that waits to its end."""
        self._unwait(task.key)
        try:
            await self._bench.moves.make(task, move, outcome=outcome)
        except StoreError:
            self._feed.look_again()  # it is still pending in the store: take it up from there
            self._wake.set()
            raise
        self._forget(task.key)
        self.changed.send()

    # --- leaving

    async def leave(self) -> None:
        """Start nothing more; returns when every run has been left alone or brought to its end."""
        self._leaving = True
        self._wake.set()
        for runner in self._runners.values():
            runner.leave()
        while self._background:
            await asyncio.wait(set(self._background))

    async def give_back(self) -> None:
        """Release what a source gave us and no run of which ever began."""
        for task in list(self._held.values()):
            if task.status is not Status.PENDING or not task.source or task.run_no:
                continue
            try:
                await self._end(task, Move.RELEASE, endings.released())
            except StoreError as error:  # it is kept for the next start
                self._log.warning("a task cannot be given back", task=task.id, why=str(error))

    async def abandon(self) -> None:
        """Leave at once: nothing more is written; recovery takes it up from the store."""
        self._leaving = True
        for job in self._background:
            job.cancel()
        if self._background:
            await asyncio.wait(set(self._background), timeout=ABANDON_LIMIT)
