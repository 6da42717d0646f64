"""Starts that were handed over before their time: each begins when a run before it has ended."""

from __future__ import annotations

import time

LIMIT = 1000  # starts that may wait
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .journal import Line

    Waiting = tuple[Line, dict[str, str]]  # what was asked, and the whole environment


class Ahead:
    """In the order in which they came. Nothing of them is journalled: they began nothing."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._full = 0  # as many as waited when the last one came

    def put(self, asked: Line, env: dict[str, str]) -> bool:
        """False if too many wait. One that waits already keeps its place."""
        if len(self._waiting) >= LIMIT:
            return False
        self._waiting.setdefault(asked["s"], (asked, env))
        self._full = len(self._waiting)
        return True

    def take(self, start_id: str) -> Waiting | None:
        """That one waits no more. None if it does not wait."""
        return self._waiting.pop(start_id, None)

    def next(self) -> Waiting | None:
        """The first that may begin by itself now; it waits no more."""
        if not self._waiting:
            return None
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        first = next((key for key, (asked, _) in self._waiting.items() if now < asked["until"]), "")
        return self.take(first)

    def short(self) -> bool:
        """Should more be handed over soon?"""
        return 2 * len(self._waiting) <= self._full

    def clear(self) -> None:
        self._waiting.clear()
