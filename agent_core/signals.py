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

    def next(self) -> asyncio.Future[None]:
        """Done at the next `send`; cancel it if you wait no more.

        It counts from now, not from when it is awaited: check your condition first, and nothing
        is missed in between.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future
