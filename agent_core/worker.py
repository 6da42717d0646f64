"""The loop that gives each free slot the task whose turn it is."""

import asyncio
from collections.abc import Sequence

from agent_core import attempts, endings, recovery
from agent_core.api.wire import Code
from agent_core.demand import Demands
from agent_core.dependencies import Dependencies, Ends, held_back
from agent_core.endings import Stop
from agent_core.errors import Conflict, StoreError
from agent_core.feed import Feed
from agent_core.firsts import Firsts
from agent_core.lifecycle import FINAL, Move, Status
from agent_core.log import get
from agent_core.models import Key, Lease, Outcome, Reason, Task
from agent_core.protocols import Held, Scheduler, Store
from agent_core.returns import Returns
from agent_core.runner import Runner
from agent_core.slots import Slots
from agent_core.turns import Turns
from agent_core.waiting import WINDOW, Aside, Waiting
from agent_core.workbench import Workbench, judge


class Worker:
    """Brings together what waits and the slots. The store knows the truth."""

    def __init__(
        self, bench: Workbench, store: Store, scheduler: Scheduler, *, ahead: int = 0
    ) -> None:
        """`ahead`: starts that are stored before a slot is free for them."""
        self.waiting = Waiting(scheduler, Feed(store, bench.clock), bench.machine.could_run)
        self.slots = Slots(bench, store, bench.machine, self._freed, self._ended)
        self.demands = Demands(bench.machine, self.waiting, bench.clock)
        ends = Ends(met=self._due, failed=self._refuse, backoff=bench.backoff)
        self.dependencies = Dependencies(store, bench.clock, ends)
        self._turns = Turns(bench, self.waiting, self.slots, ahead)
        self._held: dict[Key, Task] = {}  # every task in memory that is not final
        self.returns = Returns(bench, self.waiting, self.slots, self._held, self._end)
        self.firsts = Firsts(bench, store, self.waiting, self.slots, self._held)
        self.firsts.closed = not ahead
        self._turning: asyncio.Handle | None = None
        self._come = True  # more waits than at the last turn
        self._bench = bench
        self._store = store
        self._wake: asyncio.Future[None] | None = None  # the store may have something for us
        self._leaving = False
        self._log = get("worker")

    # --- what others ask

    def held(self, source: str) -> list[Held]:
        """The attempts of one source that are not final, each as it stands now."""
        return [
            self._bench.leases.held(self._now(key))
            for key, task in self._held.items()
            if task.source == source
        ]

    def runner(self, key: Key) -> Runner | None:
        return self.slots.runner(key)

    def _now(self, key: Key) -> Task:
        """A held task as it stands: who has a slot moves on without us."""
        runner = self.slots.runner(key)
        return runner.task if runner else self._held[key]

    # --- what comes in

    async def recover(self) -> None:
        """Take up every stored task without an end: those that had a start get a slot at once."""
        rooms = await asyncio.to_thread(recovery.rooms, self._bench.runs_dir)
        kept: set[str] = set()
        async for task in recovery.unfinished(self._store):
            kept.add(task.start_id)
            if task.status is not Status.PENDING:
                self._resume(task)
            elif task.source:
                self._held[task.key] = task
            elif held_back(task):
                self.dependencies.hold_back(task, stored=True)
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
        for task in [task for task in tasks if not await self.firsts.admit(task)]:
            try:
                refusal = await judge(self._bench, task)
                if refusal and task.key in self._held:
                    await self._end(task, Move.REFUSE, refusal)
            except StoreError as error:
                # It is judged again before it starts, so nothing is lost by letting it wait.
                self._log.error("a refusal cannot be saved now", task=task.id, why=str(error))
            if task.key in self._held:  # as it is by now: it may have begun, or been cancelled
                self._again(self._held[task.key])
        self._turn()

    async def cancel(self, key: Key, *, code: int, reason: str) -> bool:
        """End a task wherever it stands. False if it is final, unknown, or left to run on."""
        await self.firsts.known(key)
        stop = Stop(reason=Reason.CANCELLED, code=code, words=reason)
        task = self._held.get(key) or await self._store.get(key)
        while task and task.status not in FINAL:
            if runner := self.slots.runner(key):
                if runner.task.status in FINAL:
                    return False
                self.waiting.remove(key)  # where it was armed
                self.slots.stop(key, stop)
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
        if key not in self._held:
            return
        task = self._now(key)
        lease = self._bench.leases.renew(task, lease)
        self._turns.renewed(key)
        if lease.stop_after is not None:
            self.slots.in_background(self._bench.leases.save(self._store, task), f"lease {task.id}")
        if self.waiting.unpark(self._held[key]):
            self._turn()

    def machine_changed(self) -> None:
        """It has other devices than before: who could not run may now, and the other way round."""
        for key in self.waiting.keys:
            task = self._held[key]
            if task.resources:
                self.waiting.remove(key)
                self.waiting.add(task)
        for task in self.waiting.parked(Aside.MACHINE):
            if task.source and not task.run_no:
                self.returns.release_soon(task, "this machine lacks by now what it asks for")
        self._turn()

    # --- the loop

    async def run(self) -> None:
        """Bring in what waits in the store when its time has come. Ends only by an error."""
        while True:
            self._wake = asyncio.get_running_loop().create_future()
            await self._take_in()
            self._come = True
            self._take_turns()
            await asyncio.wait(
                {self._wake, self.slots.failed},
                timeout=self.waiting.feed.until_due(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self.slots.failed.done():
                self.slots.failed.result()

    async def _take_in(self) -> None:
        """Let tasks of the store whose time has come wait here for a slot."""
        if self._leaving:
            return
        for task in await self.waiting.bring_in(self.slots.keys):
            self._held.setdefault(task.key, task)

    def _turn(self, *, come: bool = True) -> None:
        """Something has changed: see to it when everything else that is ready was done."""
        self._come = self._come or come
        if self._turning is None and self._wake:  # nobody begins before `run`
            self._turning = asyncio.get_running_loop().call_soon(self._take_turns)

    def _take_turns(self) -> None:
        self._turning = None
        come, self._come = self._come, False
        try:
            if not self._leaving:
                self._turns.take(self._held, come=come)
            self._look()
        except Exception as error:  # a scheduler's, most likely: the agent ends by it
            self.slots.fail(error)
        looks = self.waiting.wants_more or self.waiting.feed.earlier
        if looks and self._wake and not self._wake.done():
            self._wake.set_result(None)

    def _look(self) -> None:
        """Let the sources know if this agent could take other work than they know."""
        self.demands.closed = self._leaving or len(self._held) >= WINDOW
        self.demands.look()
        self.returns.look()

    def _resume(self, task: Task) -> None:
        self._held[task.key] = task
        self.slots.resume(task)

    def _freed(self, lasted: float) -> None:
        """A slot is free after so many seconds, with all that its run held."""
        self.demands.ended(lasted)
        self.returns.freed()
        for aside in self.waiting.parked(Aside.ROOM):
            self.waiting.unpark(aside)
        self._turn(come=False)

    def _ended(self, key: Key, task: Task | None) -> None:
        """All of its run is stored. None: the store does not know it any more."""
        newer = [each for each in self.waiting.parked(Aside.OLDER) if each.id == key.task_id]
        for each in newer:
            self.waiting.unpark(each)
        over = task is None or task.status in FINAL
        if task is None or over:
            self._forget(key, task)
        else:
            self._held[key] = task
            self._again(task)
        if newer or not over or self.demands.closed:
            self._turn()

    def _forget(self, key: Key, ended: Task | None) -> None:
        """Its end is committed, or nothing is known of it."""
        self.waiting.remove(key)  # where it was armed
        self._held.pop(key, None)
        self._bench.leases.drop(key)
        if ended is not None and not ended.source:
            self.dependencies.drop(key)
            self.dependencies.ended(ended)

    def _due(self, task: Task) -> None:
        """What it waited for has come about."""
        if not self._leaving:
            self._held[task.key] = task
            self._again(task)
            self._turn()

    async def _refuse(self, task: Task, outcome: Outcome) -> None:
        await self._end(task, Move.REFUSE, outcome)

    def let_go(self, key: Key) -> None:
        """It does not wait here but in the store."""
        if key not in self.waiting and not self.slots.runner(key):
            self._held.pop(key, None)

    def _again(self, task: Task) -> None:
        """It waits, at once or from its due time on; what had a start is looked for."""
        if self._leaving or self.slots.runner(task.key):
            return  # left to itself while the agent leaves
        if task.status is not Status.PENDING:
            self._resume(task)
        elif self.returns.comes_back(task):
            return
        elif task.due_at <= self._bench.clock.wall():
            self.waiting.add(task)
        else:
            self.waiting.feed.look_at(task.due_at)

    async def _end(self, task: Task, move: Move, outcome: Outcome) -> None:
        """Bring a task that waits to its end."""
        self.waiting.remove(task.key)
        try:
            ended = await self._bench.moves.make(task, move, outcome=outcome)
        except StoreError:
            self.waiting.feed.look_again()  # it is still pending there: take it up again
            self._turn()
            raise
        self._forget(task.key, ended)
        self._look()

    # --- leaving

    async def leave(self) -> None:
        """Start nothing more; returns when every run has been left alone or brought to its end."""
        self._close()
        self._turn()
        await self.slots.leave()
        await self._bench.rooms.left()

    async def give_back(self) -> None:
        """Release what a source gave us and no run of which ever began."""
        await self.returns.everything()

    async def abandon(self) -> None:
        """Leave at once: nothing more is written; recovery takes it up from the store."""
        self._close()
        await self.slots.abandon()
        await self._bench.moves.close()

    def _close(self) -> None:
        self._leaving = True
        self.demands.close()
        self.returns.closed = self.firsts.closed = True
