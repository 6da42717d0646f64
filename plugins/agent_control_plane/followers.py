"""Those who read a task's output as it comes: each is woken when there is more of it."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from agent_core.api.http import Problem
from agent_core.api.wire import Code

MOST_FOLLOWING: Final = 10_000  # requests


class Followers:
    """Everything happens in the server's loop."""

    def __init__(self) -> None:
        self._of_task: dict[str, set[asyncio.Event]] = {}
        self._count = 0
        self._stopped = False

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def hanging(self) -> int:
        return self._count

    @contextlib.contextmanager
    def follow(self, task_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when there is more to read, or nothing more will come."""
        if self._count >= MOST_FOLLOWING:
            words = f"{MOST_FOLLOWING} requests wait for output already; ask without wait_sec"
            raise Problem(Code.FULL, words)
        more = asyncio.Event()
        self._of_task.setdefault(task_id, set()).add(more)
        self._count += 1
        try:
            yield more
        finally:
            self._count -= 1
            others = self._of_task[task_id]
            others.discard(more)
            if not others:
                del self._of_task[task_id]

    def heard(self, task_id: str) -> None:
        for more in self._of_task.get(task_id, ()):
            more.set()

    def missed(self) -> None:
        """Words of other servers may have been lost."""
        for task_id in self._of_task:
            self.heard(task_id)

    def stop(self) -> None:
        """Whoever waits is answered now, and nobody waits any more."""
        self._stopped = True
        self.missed()
