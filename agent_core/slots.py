"""The slots of this agent and the runner in each, driven in the background."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence, Set
from typing import Any

from agent_core import attempts, recovery
from agent_core.endings import Stop
from agent_core.errors import Conflict
from agent_core.hooks import Start
from agent_core.log import about, get
from agent_core.machine import Machine
from agent_core.models import Key, Launch, Task
from agent_core.place import Place
from agent_core.protocols import Store
from agent_core.runner import Runner
from agent_core.workbench import Workbench

ABANDON_LIMIT = 5.0  # seconds for the runners to let go


class Slots:
    """Who runs. `freed` hears of each slot that is free again, and how many seconds it was not;
    `ended` of each task whose runner is done with it, as it stands then: its end is stored a moment
    after its slot was free.
    """

    def __init__(
        self,
        bench: Workbench,
        store: Store,
        machine: Machine,
        freed: Callable[[float], None],
        ended: Callable[[Key, Task | None], None],
    ) -> None:
        self.machine = machine
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._bench = bench
        self._store = store
        self._freed = freed
        self._ended = ended
        # Who is armed can be handed over; it began by itself; its executor has it no more; and it
        # has come to its end, or waits again.
        self.ready: Callable[[Key], None] = lambda key: None
        self.followed: Callable[[Key], None] = lambda key: None
        self.lost: Callable[[Key], None] = lambda key: None
        self.gone: Callable[[Key], None] = lambda key: None
        self._leaving = False
        self._runners: dict[Key, Runner] = {}
        self._armed: set[Key] = set()  # whose start is stored, or soon, and that have no slot
        self._background: set[asyncio.Task[None]] = set()
        self._log = get("worker")

    @property
    def armed(self) -> Set[Key]:
        """Those whose start is stored ahead of their slot."""
        return self._armed

    @property
    def keys(self) -> set[Key]:
        return set(self._runners)

    @property
    def idle(self) -> bool:
        """Nothing runs, and nothing of what ran is still to be done."""
        return not self._background

    def runner(self, key: Key) -> Runner | None:
        return self._runners.get(key)

    def another_attempt(self, task: Task) -> bool:
        """Whether one at the same task has a slot, or was armed and may begin just now."""
        return attempts.another(task, self._runners, lambda key: self._runners[key].task.source)

    def start(self, task: Task, wished: Sequence[str] = ()) -> bool:
        """Give it a slot and the devices that it asks for. False if it does not fit by now."""
        devices = self.machine.take(task, wished)
        if devices is None:
            return False
        if task.key in self._armed:
            self._armed.discard(task.key)
            self._runners[task.key].go()
        else:
            self._drive_on(task, devices)
        return True

    def arm(self, task: Task) -> None:
        """Have its start stored; it begins as soon as it is given a slot."""
        self._armed.add(task.key)
        self._drive_on(task, (), place=self._place(task))

    def arm_stored(self, task: Task, stored: "tuple[Launch, Start]") -> None:
        """Likewise, where its start was stored together with the task."""
        self._armed.add(task.key)
        self._drive_on(task, (), place=self._place(task), stored=stored)

    def _place(self, task: Task) -> Place:
        key = task.key
        return Place(
            waits=True,
            ready=lambda: self.ready(key),
            follows=lambda: self._followed(task),
            lost=lambda: None if self._leaving else self.lost(key),
        )

    def _followed(self, task: Task) -> None:
        """Its executor began it where another had ended, whose slot it has now."""
        if self.machine.holds(task.key):
            return
        self.machine.take(task)
        self._armed.discard(task.key)
        self._runners[task.key].go()
        try:
            self.followed(task.key)
        except Exception as error:  # a scheduler's: whoever tells us of it is not to blame
            self.fail(error)

    def hand_over(self, key: Key) -> bool:
        """Let the executor begin it where another ends. False if it cannot now."""
        runner = self._runners[key]
        return runner.place.hand_over(self._bench.leases.until(runner.task))

    def take_back(self, key: Key, then: Callable[[], None]) -> None:
        """Have it not begin by itself any more; `then` is called, also if it did."""

        async def take_back(place: Place) -> None:
            await place.taken_back(self._bench)
            then()

        name = f"take back {key.task_id}"
        self.in_background(take_back(self._runners[key].place), name)

    def disarm(self, key: Key) -> None:
        """It gives its start back; `ended` tells when it waits again."""
        self._armed.discard(key)
        self._runners[key].place.give_back()

    def resume(self, task: Task) -> None:
        """It has a start already: it keeps its slot and its devices, whatever else is taken."""
        self.machine.keep(task)
        self._drive_on(task, task.devices)

    def stop(self, key: Key, stop: Stop) -> None:
        """End what has a slot."""
        self._runners[key].stop(stop)
        self.machine.ending(key)

    def _drive_on(
        self,
        task: Task,
        devices: Sequence[str],
        *,
        place: Place | None = None,
        stored: "tuple[Launch, Start] | None" = None,
    ) -> None:
        key = task.key
        runner = Runner(
            self._bench,
            task,
            devices,
            freed=lambda: self._free(key),
            ending=lambda: self.machine.ending(key),
            place=place,
            stored=stored,
        )
        self._runners[key] = runner
        self.in_background(self._drive(runner), f"runner {task.id}")

    def _free(self, key: Key) -> None:
        """Once its run has ended, or it turned out that there is none."""
        if had := self.machine.give_back(key):
            self._freed(self._bench.clock.wall() - had.since)

    def in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Beside the loop; an error of it ends the agent."""
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
        self._armed.discard(key)
        self.gone(key)
        self._free(key)
        self._ended(key, task)

    def _driven(self, job: asyncio.Task[None]) -> None:
        self._background.discard(job)
        if not job.cancelled() and (error := job.exception()):
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Nobody can go on: the agent ends by it."""
        if not self.failed.done():
            self.failed.set_exception(error)

    async def leave(self) -> None:
        """Returns when every run has been left alone or brought to its end."""
        self._leaving = True
        for runner in self._runners.values():
            runner.leave()
        while self._background:
            await asyncio.wait(set(self._background))

    async def abandon(self) -> None:
        """Let go at once: nothing more is written."""
        self._leaving = True
        for job in self._background:
            job.cancel()
        if self._background:
            await asyncio.wait(set(self._background), timeout=ABANDON_LIMIT)
