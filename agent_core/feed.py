"""What waits in the store and not in memory: brought in when its time comes, a window at a time."""

from collections.abc import Collection

from agent_core.clock import Clock
from agent_core.errors import StoreError
from agent_core.log import get
from agent_core.models import Key, Task
from agent_core.protocols import Store

LOOK_AGAIN = 30.0  # seconds at most until a due time is compared with the clock again
NEVER = 253_402_300_799.0  # wall: the due time of what waits for something without a date
SHORTEST = 0.05  # seconds between two looks


class Feed:
    """Knows when to look into the store for waiting tasks, so that nobody polls it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._log = get("worker")
        self._more = True  # the store may have waiting tasks that memory has not
        self._many = False  # because the last look into it found more than there was space for
        self._next_due: float | None = None  # wall
        self.earlier = False  # `until_due` is less than when it was asked

    def look_again(self) -> None:
        """The store has a task that memory has not."""
        self._more, self._many = True, False

    def look_at(self, due: float | None) -> None:
        """The store has a task whose time comes then (wall)."""
        if due is not None and due < NEVER and (self._next_due is None or due < self._next_due):
            self._next_due = due
            self.earlier = True

    def until_due(self) -> float | None:
        """Seconds until `take` may have something; None: not before somebody says so."""
        self.earlier = False
        if self._next_due is None:
            return None
        return min(max(self._next_due - self._clock.wall(), SHORTEST), LOOK_AGAIN)

    def has_more(self, many: bool) -> bool:
        """Whether `take` may have something; of many in a row only if there is space for many."""
        due = self._next_due is not None and self._next_due <= self._clock.wall()
        return due or (self._more and (many or not self._many))

    async def take(self, space: int, known: Collection[Key]) -> list[Task]:
        """At most `space` tasks whose time has come and that are not `known`, most urgent first."""
        now = self._clock.wall()
        if self._next_due is not None and self._next_due <= now:
            self._next_due, self._more = None, True
        if not self._more or space <= 0:
            return []
        # Forgotten before it is read: whoever sets it again meanwhile must not be overwritten.
        self._next_due, self._more = None, False
        try:
            tasks = await self._store.due(now, limit=space, skip=known)
            self.look_at(await self._store.next_due(now))
        except StoreError as error:
            self._log.error("waiting tasks cannot be read, trying again", why=str(error))
            self._more = True
            self.look_at(now + LOOK_AGAIN)
            return []
        if len(tasks) == space and not self._more:
            self._more = self._many = True
        return tasks
