"""The tasks in memory that wait for a slot: known to the scheduler, or set aside for a while."""

from collections import Counter
from collections.abc import Callable, Collection
from enum import StrEnum

from agent_core.api.resources import Free
from agent_core.feed import Feed
from agent_core.models import Key, Plan, Running, Task
from agent_core.protocols import Scheduler

WINDOW = 1000  # tasks that wait in memory for their turn; the rest waits in the store
REFILL = 50  # of them may begin before more are brought in, where the store has many
ASIDE = 10 * WINDOW  # at most those and the ones set aside together


class Aside(StrEnum):
    """What a task waits for that is set aside: its turn came, but it cannot begin."""

    LEASE = "lease"  # its lease is over: for a renewal
    OLDER = "older"  # an older attempt at it is still here: for that one's end
    ROOM = "room"  # it was planned and does not fit: for anything to be given back
    MACHINE = "machine"  # not even the empty machine would do as it is now: for it to change


class Waiting:
    """Who waits here. The scheduler says in which order, the feed brings more from the store."""

    def __init__(self, scheduler: Scheduler, feed: Feed, could_run: Callable[[Task], bool]) -> None:
        self.feed = feed
        self._could_run = could_run  # on this machine as it is now, if nothing else ran
        self._scheduler = scheduler
        self._in_line: dict[Key, int] = {}  # whom the scheduler has, with its priority
        self._counts: Counter[int] = Counter()  # of them, by priority
        self._asking: dict[Key, Task] = {}  # those of them that ask for resources
        self._parked: dict[Key, tuple[Task, Aside]] = {}

    def __len__(self) -> int:
        return len(self._in_line) + len(self._parked)

    def __contains__(self, key: Key) -> bool:
        return key in self._in_line or key in self._parked

    @property
    def keys(self) -> set[Key]:
        return self._in_line.keys() | self._parked.keys()

    def parked(self, *why: Aside) -> list[Task]:
        """Those set aside for one of these."""
        return [task for task, reason in self._parked.values() if reason in why]

    @property
    def in_line(self) -> int:
        """How many the scheduler may choose from."""
        return len(self._in_line)

    @property
    def ready(self) -> int:
        """How many wait that may begin sooner or later, as this machine is."""
        return len(self) - len(self.parked(Aside.MACHINE)) if self._parked else len(self._in_line)

    def by_urgency(self) -> list[Key]:
        """Whom the scheduler may choose from: by priority, then as they came."""
        return sorted(self._in_line, key=self._in_line.__getitem__)

    def as_urgent_as(self, priority: int) -> int:
        """How many the scheduler may choose from that are of this priority or more urgent."""
        return sum(count for each, count in self._counts.items() if each <= priority)

    @property
    def asking(self) -> Collection[Task]:
        """Those that the scheduler may choose from and that ask for more than a slot."""
        return self._asking.values()

    def add(self, task: Task) -> None:
        """It waits for a slot from now on; where there are too many, in the store."""
        if task.resources and not self._could_run(task):
            self.park(task, Aside.MACHINE)
            return
        if len(self._in_line) >= WINDOW:
            self.feed.look_again()
            return
        self._leave_line(task.key)  # where it stood in it already
        self._in_line[task.key] = task.priority
        self._counts[task.priority] += 1
        if task.resources:
            self._asking[task.key] = task
        self._scheduler.add(task)

    def remove(self, key: Key) -> None:
        self._leave_line(key)
        self._asking.pop(key, None)
        self._parked.pop(key, None)
        self._scheduler.remove(key)

    def _leave_line(self, key: Key) -> None:
        priority = self._in_line.pop(key, None)
        if priority is None:
            return
        self._counts[priority] -= 1
        if not self._counts[priority]:
            del self._counts[priority]

    def park(self, task: Task, why: Aside) -> None:
        """It cannot begin now: whoever knows when it can calls `unpark`."""
        self.remove(task.key)
        self._parked[task.key] = (task, why)

    def unpark(self, task: Task) -> bool:
        """If it was set aside: it waits for a slot again, as it is now."""
        if self._parked.pop(task.key, None) is None:
            return False
        self.add(task)
        return True

    @property
    def wants_more(self) -> bool:
        """The store may have something that there is space for here."""
        space = self._space
        return space > 0 and self.feed.has_more(space >= REFILL)

    @property
    def _space(self) -> int:
        return min(WINDOW - len(self._in_line), ASIDE - len(self))

    async def bring_in(self, running: set[Key]) -> list[Task]:
        """Let tasks of the store whose time has come wait here, and return them."""
        if not self.feed.has_more(True):
            return []
        found = await self.feed.take(self._space, self.keys | running)
        for task in found:
            self.add(task)
        return found

    def plan(self, running: Collection[Running], free: Free) -> Plan:
        """The scheduler's word, as far as it speaks of tasks that wait, each once."""
        plan = self._scheduler.next(running, free)
        start = {task.key: task for task in plan.start if task.key in self._in_line}
        return plan._replace(start=list(start.values()))
