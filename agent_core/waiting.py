"""The tasks in memory that wait for a slot: known to the scheduler, or set aside for a while."""

from collections.abc import Sequence

from agent_core.feed import Feed
from agent_core.models import Key, Plan, Task
from agent_core.protocols import Scheduler
from agent_core.resources import Free

WINDOW = 1000  # tasks that wait in memory; the rest waits in the store


class Waiting:
    """Who waits here. The scheduler says in which order, the feed brings more from the store."""

    def __init__(self, scheduler: Scheduler, feed: Feed) -> None:
        self.feed = feed
        self._scheduler = scheduler
        self._in_line: set[Key] = set()  # whom the scheduler has
        self._parked: dict[Key, Task] = {}  # whose turn came when they could not begin

    def __len__(self) -> int:
        return len(self._in_line) + len(self._parked)

    def __contains__(self, key: Key) -> bool:
        return key in self._in_line or key in self._parked

    @property
    def keys(self) -> set[Key]:
        return self._in_line | self._parked.keys()

    @property
    def parked(self) -> Sequence[Task]:
        return tuple(self._parked.values())

    @property
    def in_line(self) -> int:
        """How many the scheduler may choose from."""
        return len(self._in_line)

    def add(self, task: Task) -> None:
        """It waits for a slot from now on; where there are too many, in the store."""
        if len(self._in_line) >= WINDOW:
            self.feed.look_again()
            return
        self._in_line.add(task.key)
        self._scheduler.add(task)

    def remove(self, key: Key) -> None:
        self._in_line.discard(key)
        self._parked.pop(key, None)
        self._scheduler.remove(key)

    def park(self, task: Task) -> None:
        """It cannot begin now: whoever knows when it can calls `unpark`."""
        self.remove(task.key)
        self._parked[task.key] = task

    def unpark(self, task: Task) -> bool:
        """If it was set aside: it waits for a slot again, as it is now."""
        if self._parked.pop(task.key, None) is None:
            return False
        self.add(task)
        return True

    async def bring_in(self, running: set[Key]) -> list[Task]:
        """Let tasks of the store whose time has come wait here, and return them."""
        found = await self.feed.take(WINDOW - len(self._in_line), self.keys | running)
        for task in found:
            self.add(task)
        return found

    def plan(self, running: Sequence[Task], free: Free) -> Plan:
        """The scheduler's word, as far as it speaks of tasks that wait, each once."""
        plan = self._scheduler.next(running, free)
        start = {task.key: task for task in plan.start if task.key in self._in_line}
        return Plan(start=list(start.values()), preempt=plan.preempt)
