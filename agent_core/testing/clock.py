"""A clock that a test turns by hand: nothing in it happens by itself."""

import asyncio
import heapq
import itertools
from typing import Any

_TURNS = 50  # of an event loop that does not tell whether anything is ready to run
_MOST_TURNS = 100_000  # of one that does: by then something never comes to rest


class TurnedClock:
    """An `agent_core.clock.Clock` whose time stands still between calls of `advance`."""

    def __init__(self, wall: float = 1_700_000_000.0, boottime: float = 1_000.0) -> None:
        self.boot_id = "boot-1"
        self._wall = wall  # seconds since the epoch
        self._boottime = boottime  # seconds since boot
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._watchers: list[tuple[int, asyncio.Future[None]]] = []
        self._boots = 1

    def wall(self) -> float:
        return self._wall

    def boottime(self) -> float:
        return self._boottime

    async def sleep(self, seconds: float) -> None:
        """Returns when the clock was turned that far; at once for nothing or less."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._boottime + seconds, next(self._order), future))
        self._tell_watchers()
        await future

    @property
    def sleeping(self) -> int:
        """How many wait for this clock."""
        return sum(not future.done() for _, _, future in self._sleepers)

    @property
    def next_wake(self) -> float | None:
        """Seconds until the first of them wakes."""
        left = [at for at, _, future in self._sleepers if not future.done()]
        return min(left) - self._boottime if left else None

    async def until_sleeping(self, count: int = 1) -> None:
        """Returns when at least `count` wait for this clock."""
        if self.sleeping >= count:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append((count, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Turn it; sleepers wake one after another in the order of their times.

        After each the event loop runs until nothing is ready any more, so that who sleeps again
        within these seconds wakes again within them. Threads and sockets are not waited for.
        """
        target = self._boottime + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            at, _, future = heapq.heappop(self._sleepers)
            if future.done():
                continue  # its sleeper was cancelled
            self._move_to(at)
            future.set_result(None)
            await self._settle()
        self._move_to(target)
        await self._settle()

    def jump_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock: nobody wakes, boot time goes on as before."""
        self._wall += seconds

    def reboot(self, boottime: float = 10.0) -> None:
        """The machine starts anew: another boot id, boot time from the beginning, no sleepers."""
        self._boots += 1
        self.boot_id = f"boot-{self._boots}"
        self._boottime = boottime
        self._sleepers.clear()

    def _move_to(self, boottime: float) -> None:
        self._wall += max(0.0, boottime - self._boottime)
        self._boottime = max(self._boottime, boottime)

    def _tell_watchers(self) -> None:
        count = self.sleeping
        for wanted, future in self._watchers:
            if count >= wanted and not future.done():
                future.set_result(None)
        self._watchers = [each for each in self._watchers if not each[1].done()]

    @staticmethod
    async def _settle() -> None:
        ready: Any = getattr(asyncio.get_running_loop(), "_ready", None)  # of asyncio's own loops
        for _ in range(_TURNS if ready is None else _MOST_TURNS):
            await asyncio.sleep(0)
            if ready is not None and not ready:
                return
