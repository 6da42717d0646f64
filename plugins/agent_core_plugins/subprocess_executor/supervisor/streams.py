"""The runs' output, pumped from their FIFOs into the files that keep it."""

from __future__ import annotations

import errno
import fcntl
import os
import select

from .sink import Sink

PIPE = 1024 * 1024  # bytes that a busy stream's pipe is given, and that are read at once
BUSY = 65536  # bytes in one read, from which on a stream counts as busy: all that a pipe holds
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .run import Run


class Streams:
    """Every stream that is awaited."""

    def __init__(self, epoll: select.epoll, move: Callable[[int], int]) -> None:
        self._epoll = epoll
        self._move = move
        self._known: dict[int, tuple[Run, int]] = {}  # by our end's number
        self._buffer = memoryview(bytearray(PIPE))

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._known

    def follow(self, run: Run) -> None:
        """Say from now on when something can be read. Raises OSError; it may be asked again."""
        for place, descriptor in enumerate(run.fifos):
            if descriptor not in self._known:
                self._epoll.register(descriptor, select.EPOLLIN)
                self._known[descriptor] = (run, place)

    def drop(self, descriptor: int) -> None:
        self._known.pop(descriptor, None)
        os.close(descriptor)  # which takes it out of the epoll set

    def read(self, descriptor: int, limit: int) -> None:
        """Take at most `limit` bytes from a stream that is followed."""
        self.take(*self._known[descriptor], limit)

    def take(self, run: Run, place: int, limit: int) -> None:
        """Take at most `limit` bytes from a run's stdout (0) or stderr (1)."""
        descriptor, sink = run.fifos[place], run.sinks[place]
        while limit > 0:
            try:
                size = os.readv(descriptor, [self._buffer[: min(limit, PIPE)]])
            except BlockingIOError:
                return
            if sink is None:
                sink = run.sinks[place] = Sink(run.out[place], run.cap, self._move)
            sink.write(self._buffer[:size])
            limit -= size
            if size < BUSY:
                return
            if not run.wide[place]:
                run.wide[place] = True
                _widen(descriptor)


def _widen(descriptor: int) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE)
    except OSError as error:  # this user's pipes hold all that they may
        if error.errno not in (errno.EPERM, errno.EBUSY, errno.ENOMEM):
            raise
