"""Gives tasks that never began here back to their sources, for another machine to run them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from agent_core import endings
from agent_core.errors import StoreError
from agent_core.lifecycle import Move, Status
from agent_core.log import get
from agent_core.models import Key, Outcome, Task
from agent_core.signals import resolve
from agent_core.slots import Slots
from agent_core.waiting import Waiting
from agent_core.workbench import Workbench

PATIENCE = 3.0  # seconds; who waits for that long while no run ends may wait for days
IN_VAIN = "no slot was free here for a while"


class Returns:
    """What waits in vain, where its source has others for it; and all of it as the agent stops.

    A task was taken ahead because slots turned over; then every slot got a long run. It is not
    taken ahead again until slots turn over again: see `Demands`.
    """

    def __init__(
        self,
        bench: Workbench,
        waiting: Waiting,
        slots: Slots,
        held: Mapping[Key, Task],
        end: Callable[[Task, Move, Outcome], Awaitable[None]],
    ) -> None:
        """`held` has each task as it waits; `end` brings one that waits to its end."""
        self.closed = False  # the agent leaves
        self._bench = bench
        self._waiting = waiting
        self._slots = slots
        self._held = held
        self._end = end
        self._sources: set[str] = set()  # that take back what waits in vain
        self._disarmed: set[Key] = set()  # those that go back when their starts are given back
        self._freed = False  # a slot, since this was last looked at
        self._failing = False  # said once a change
        self._rests: asyncio.Future[None] | None = None  # nobody waits
        self._log = get("worker")

    def heard(self, source: str, *, takes_back: bool) -> None:
        """What a source says with each of its answers."""
        (self._sources.add if takes_back else self._sources.discard)(source)

    def freed(self) -> None:
        """A slot is free again."""
        self._freed = True

    def look(self) -> None:
        """Somebody may wait by now."""
        if self._rests and self._waiting.in_line:
            resolve(self._rests)

    async def run(self) -> None:
        """Ends only by an error."""
        while True:
            self._rests = asyncio.get_running_loop().create_future()
            self.look()
            await self._rests
            before = set(self._in_vain())
            self._freed = False
            await self._bench.clock.sleep(PATIENCE)
            keys = [key for key in self._in_vain() if key in before]
            if keys and not self._freed and not self.closed:
                self._give_back(keys)

    def comes_back(self, task: Task) -> bool:
        """Whether one that gave its start back goes to its source, and waits here no more."""
        expected = task.key in self._disarmed
        self._disarmed.discard(task.key)
        if not expected or not self._unbegun(task):
            return False
        self.release_soon(task, IN_VAIN)
        return True

    async def everything(self) -> None:
        """What a source gave us and no run of which ever began: the agent stops."""
        for task in list(self._held.values()):
            if self._unbegun(task):
                await self._release(task, "the agent stops")

    def release_soon(self, task: Task, why: str) -> None:
        self._slots.in_background(self._release(task, why), f"release {task.id}")

    async def _release(self, task: Task, why: str) -> None:
        try:
            await self._end(task, Move.RELEASE, endings.released(why))
        except StoreError as error:  # it is kept for another time
            if not self._failing or self.closed:
                self._log.warning("a task cannot be given back", task=task.id, why=str(error))
            self._failing = True
        else:
            self._failing = False

    @staticmethod
    def _unbegun(task: Task) -> bool:
        return bool(task.source) and task.status is Status.PENDING and not task.run_no

    def _in_vain(self) -> list[Key]:
        """Who may wait for long, the most urgent first; not those for whom room is coming."""
        coming = sum(each.ending for each in self._bench.machine.running)
        return [
            key
            for key in self._waiting.by_urgency()[coming:]
            if self._held[key].source in self._sources and self._unbegun(self._held[key])
        ]

    def _give_back(self, keys: list[Key]) -> None:
        """All of them leave the line before others could be armed in their place."""
        self._disarmed = {key for key in self._disarmed if self._slots.runner(key)}
        self._log.info("gives back what waits in vain", tasks=len(keys))
        for key in keys:
            self._waiting.remove(key)
            if key in self._slots.armed:
                self._disarmed.add(key)
                self._slots.disarm(key)
            else:
                self.release_soon(self._held[key], IN_VAIN)
