"""Reads the streams of one run side by side, each in a thread of its own."""

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_core.api.wire import Code
from agent_core.cli.patience import Patience
from agent_core.errors import Refused

if TYPE_CHECKING:
    from agent_core.api.client import Client
    from agent_core.api.replies import Log

WAIT: Final = 30  # seconds that the server may think about one answer
AHEAD: Final = 4  # pieces that were read and not shown yet: a slow terminal slows the reading
QUICK: Final = 1.0  # seconds; a server that has nothing and says so faster does not wait for us
FIRST_PAUSE: Final = 0.2  # seconds between two questions to such a server, growing
LAST_PAUSE: Final = 2.0
LEAVE: Final = 0.1  # seconds for each thread that is between two questions


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What became of one question."""

    stream: str
    piece: "Log | None" = None
    lost: Exception | None = None  # no answer; it is asked again
    refused: Exception | None = None  # asked again only if the run may be there later
    at: float = 0.0  # when it was lost, or asked what was refused, by the monotonic clock


class _Stopped(Exception):
    """Nobody wants to know any more."""


class Reading:
    """The pieces of one run's streams in the order they came, each stream's until its end."""

    def __init__(
        self, client: "Client", task_id: str, run: int | None, offsets: Mapping[str, int]
    ) -> None:
        self._client = client
        self._id = task_id
        self._run = run
        self._said: queue.Queue[Said] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._read, args=(stream, offset), name=f"read {stream}", daemon=True
            )
            for stream, offset in offsets.items()
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> Said:
        """What came next; waits for it."""
        return self._said.get()

    def stop(self) -> None:
        """No more questions. A thread that hangs in an answer is left there: Ctrl-C is quick."""
        self._stop.set()
        for thread in self._threads:
            thread.join(LEAVE)

    def _read(self, stream: str, offset: int) -> None:
        try:
            self._pieces(stream, offset)
        except _Stopped:
            return
        except Exception as error:  # the reader of `next` raises it
            self._put_last(Said(stream=stream, refused=error))

    def _pieces(self, stream: str, offset: int) -> None:
        missed = False

        def wait() -> int:
            return 0 if missed else WAIT  # that it answers again is to be heard at once

        def away(error: Exception) -> None:
            nonlocal missed
            missed = True
            self._put(Said(stream=stream, lost=error, at=time.monotonic()))

        patience = Patience(away=away, back=lambda: None, sleep=self._sleep)
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                piece = patience.ask(
                    lambda at=offset: self._client.logs(  # type: ignore[misc]
                        self._id, stream=stream, run=self._run, offset=at, wait_sec=wait()
                    )
                )
            except Refused as error:
                if error.business_code != Code.INVALID:
                    raise
                self._put(Said(stream=stream, refused=error, at=began))  # no such run yet?
                self._sleep(LAST_PAUSE)
                continue
            missed = False
            self._put(Said(stream=stream, piece=piece))
            if piece.eof:
                return
            if piece.next_offset > offset:
                pause = FIRST_PAUSE
            elif time.monotonic() - began < QUICK:
                self._sleep(pause)
                pause = min(pause * 1.5, LAST_PAUSE)
            offset = max(offset, piece.next_offset)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Stopped

    def _put(self, said: Said) -> None:
        while not self._stop.is_set():
            try:
                self._said.put(said, timeout=LAST_PAUSE)
                return
            except queue.Full:
                continue
        raise _Stopped

    def _put_last(self, said: Said) -> None:
        try:
            self._put(said)
        except _Stopped:
            return
