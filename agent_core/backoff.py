"""How long to wait after a failure: exponential, with full jitter, and interruptible."""

import asyncio
import random


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
        self._rng = rng or random.Random()
        self._failures = 0

    def next(self, retry_after: float | None = None) -> float:
        """Seconds to wait now. At least `retry_after`, where the other side named one."""
        ceiling = min(self._cap, self._base * 2.0 ** min(self._failures, 32))
        self._failures += 1
        pause_for = self._rng.uniform(0.1 * self._base, ceiling)
        return max(pause_for, min(retry_after or 0.0, self._cap * 10))

    def reset(self) -> None:
        """It worked: the next failure starts from the base again."""
        self._failures = 0


async def pause(seconds: float, *wake: asyncio.Event) -> bool:
    """Wait that long, or until one of the events is set. True if an event ended it."""
    if not wake:
        await asyncio.sleep(seconds)
        return False
    waits = [asyncio.ensure_future(event.wait()) for event in wake]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()
