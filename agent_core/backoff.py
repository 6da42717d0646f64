"""How long to wait after a failure: exponential, with full jitter, and interruptible."""

import asyncio
import math
import random
from collections.abc import Coroutine
from typing import Any

from agent_core.clock import Clock

LONGEST_ASKED_FOR = 600.0  # seconds; the other side may name more, but is not left alone for more


class Backoff:
    """Growing pauses for one thing that keeps failing.

    Full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so
    that a fleet that lost its server does not come back all at once.
    """

    def __init__(
        self, base: float = 1.0, cap: float = 60.0, rng: random.Random | None = None
    ) -> None:
        self._base = base  # seconds
        self._cap = cap  # seconds
        self._uniform = (rng or random).uniform  # seeding a generator each costs 0.1 ms
        self._failures = 0

    def next(self, retry_after: float | None = None) -> float:
        """Seconds to wait now. At least `retry_after`, where the other side named one."""
        ceiling = min(self._cap, self._base * 2.0 ** min(self._failures, 32))
        self._failures += 1
        # Never nearly nothing: a lucky draw must not become a second request at once.
        pause_for = self._uniform(0.1 * self._base, ceiling)
        if retry_after is None or not math.isfinite(retry_after):
            return pause_for
        return max(pause_for, min(retry_after, LONGEST_ASKED_FOR))

    def reset(self) -> None:
        """It worked: the next failure starts from the base again."""
        self._failures = 0


async def pause(seconds: float, *wake: asyncio.Event, clock: Clock | None = None) -> bool:
    """Wait that long, or until one of the events is set. True if an event ended it.

    Of an injected `clock`, else of the machine's own.
    """
    if any(event.is_set() for event in wake):
        return True
    sleep: Coroutine[Any, Any, None] = (
        clock.sleep(seconds) if clock else asyncio.sleep(max(0.0, seconds))
    )
    waits = [asyncio.ensure_future(event.wait()) for event in wake]
    everything = [asyncio.ensure_future(sleep), *waits]
    try:
        await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        return any(wait.done() for wait in waits)
    finally:
        for each in everything:
            each.cancel()
