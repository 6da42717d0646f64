"""A thing that happens again and again, and those who wait for the next time."""

import asyncio


def resolve(future: "asyncio.Future[None]") -> None:
    """Let whoever waits for it go on, if it is not done: by an answer, or given up."""
    if not future.done():
        future.set_result(None)


class Bell:
    """Rung by whatever happens, or by time: a wait at half the cost of asyncio.wait's, where only
    the first of several things is waited for, again and again.
    """

    def __init__(self) -> None:
        self._rung: asyncio.Future[None] | None = None

    def ring(self, _: object = None) -> None:
        """Let whoever waits go on; nobody hears it later. May be a future's callback."""
        if self._rung:
            resolve(self._rung)

    @property
    def awaited(self) -> bool:
        return self._rung is not None

    async def rings(self, most: float) -> None:
        """Returns at the next ring, or `most` seconds from now. One waits at a time."""
        loop = asyncio.get_running_loop()
        self._rung = loop.create_future()
        timer = loop.call_later(most, self.ring)
        try:
            await self._rung
        finally:
            timer.cancel()
            self._rung = None


class Once:
    """A thing that happens once, and that hardly anybody waits for: a future when it is asked."""

    def __init__(self) -> None:
        self.sent = False
        self._future: asyncio.Future[None] | None = None

    def send(self) -> None:
        self.sent = True
        if self._future:
            resolve(self._future)

    @property
    def future(self) -> "asyncio.Future[None]":
        """Done when it has happened; one for all who wait."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
            if self.sent:
                self._future.set_result(None)
        return self._future


class Signal:
    """Unlike an Event it has no state to clear, so any number may wait without stealing it."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def send(self) -> None:
        for future in self._waiting:
            resolve(future)

    def next(self) -> asyncio.Future[None]:
        """Done at the next `send`; cancel it if you wait no more.

        It counts from now, not from when it is awaited: check your condition first, and nothing
        is missed in between.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future
