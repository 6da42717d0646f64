"""Starts that are stored together with their tasks: of those for which a slot is free already."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent_core import attempts
from agent_core.clock import Instant
from agent_core.errors import StoreError
from agent_core.hooks import Start
from agent_core.lifecycle import Move
from agent_core.log import get
from agent_core.models import Key, Launch, Outcome, Task
from agent_core.protocols import Store
from agent_core.signals import resolve
from agent_core.slots import Slots
from agent_core.waiting import Waiting
from agent_core.workbench import Workbench, made_ready, taking


@dataclass(frozen=True, kw_only=True, slots=True)
class First:
    """A task with its start, as both are stored."""

    task: Task
    launch: Launch
    start: Start
    known: "asyncio.Future[None]"  # done when the worker has it, or knows that it has not


class Firsts:
    """One transaction in place of two, on the way of a task that has nothing to wait for.

    What was stored so is armed: it stands in line like any other, and the scheduler says who
    begins. Only an executor that can tell what became of a start is given one so early.
    """

    def __init__(
        self,
        bench: Workbench,
        store: Store,
        waiting: Waiting,
        slots: Slots,
        held: dict[Key, Task],
    ) -> None:
        """`held`: every task in memory, as it waits."""
        self.closed = False  # the agent leaves, or has no start stored ahead of its slot
        self._bench = bench
        self._store = store
        self._waiting = waiting
        self._slots = slots
        self._held = held
        self._coming: dict[Key, First] = {}
        self._log = get("worker")

    async def store(self, tasks: Sequence[Task], facts: Mapping[str, str]) -> list[Task]:
        """Keep what a source brought; those that are new, as they came. Raises StoreError."""
        await self._choose(tasks)
        fresh: set[Key] = set()
        try:
            coming = self._coming
            found = await self._store.add(
                [coming[task.key].task if task.key in coming else task for task in tasks], facts
            )
            fresh = {task.key for task in found}
        finally:
            for task in tasks:
                if task.key not in fresh and (first := self._take(task.key)):
                    first.start.drop()
        return [task for task in tasks if task.key in fresh]

    async def admit(self, task: Task) -> bool:
        """Whether its start was stored with it: then it waits for its slot in line, and is armed.

        An agent that leaves meanwhile takes the start back, so that the task can be given back.
        """
        first = self._take(task.key)
        if first is None:
            return False
        if not self.closed:
            self._slots.arm_stored(first.task, (first.launch, first.start))
            self._waiting.add(task)
            return True
        first.start.drop()
        self._held[task.key] = first.task
        try:
            self._held[task.key] = await self._bench.moves.make(first.task, Move.UNASSIGN)
        except StoreError as error:  # after a restart it is found to have begun nothing
            self._log.error("a start cannot be taken back", task=task.id, why=str(error))
        return True

    def _take(self, key: Key) -> First | None:
        first = self._coming.pop(key, None)
        if first:
            resolve(first.known)
        return first

    async def known(self, key: Key) -> None:
        """Return when a task whose start is just being stored is the worker's."""
        if first := self._coming.get(key):
            await asyncio.wait({first.known})

    async def _choose(self, tasks: Sequence[Task]) -> None:
        """As many as would find a slot; another agent's grant ends what this one has of a task."""
        if not self._room:
            return
        again = {key.task_id for key in attempts.replaced(self._held, tasks)}
        for task in sorted(tasks, key=lambda task: (task.priority, task.created_at)):
            if not self._room:
                return
            known = task.key in self._held or task.key in self._coming
            if known or task.id in again or task.resources or self._bench.leases.over(task):
                continue
            if first := await self._ready(task):
                self._coming[task.key] = first

    @property
    def _room(self) -> bool:
        """There is a slot in which nobody is about to begin."""
        taken = self._waiting.in_line + len(self._coming)
        return not self.closed and self._bench.machine.free_slots > taken

    async def _ready(self, task: Task) -> First | None:
        """None: it is looked at again when it is stored, and why not is said then."""
        now = Instant.now(self._bench.clock)
        ready = await made_ready(self._bench, task, now)
        if isinstance(ready, Outcome):
            return None
        launch, start = ready
        if not self._bench.hooks.finds_again(start.plugin):
            start.drop()
            return None
        changes = taking(task, launch, start, now)
        return First(
            task=self._bench.moves.beforehand(task, Move.ASSIGN, **changes),
            launch=launch,
            start=start,
            known=asyncio.get_running_loop().create_future(),
        )
