"""A thing that happens again and again, and those who wait for the next time."""

import asyncio


class Signal:
    """Unlike an Event it has no state to clear, so any number may wait without stealing it."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def send(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        """Returns at the next `send`. Check your condition first: nothing happens in between."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
