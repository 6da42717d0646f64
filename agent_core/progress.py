"""How far a run says it is: the last line of its progress file, else its last line of output."""

import asyncio
import os
import re
import stat
from dataclasses import replace

from agent_core.clock import Clock
from agent_core.errors import reason_of
from agent_core.execution import Execution
from agent_core.log import get
from agent_core.models import Piece, Progress, Stream

AGE = 1.0  # seconds for which a progress that was read is good enough
TAIL_LIMIT = 5.0  # seconds for an executor to say what a run printed
READ_LIMIT = 64 * 1024  # bytes of the file that are looked at, from its end
MESSAGE_LIMIT = 500  # characters
_LINE = re.compile(r"\s*(\d{1,3})(?:\s*%)?(?:\s+(.*))?$")


class Reader:
    """How far one run is, read at most once a second, and what it prints."""

    def __init__(self, path: str, execution: Execution, clock: Clock) -> None:
        self._execution = execution
        self._path = path  # of its progress file
        self._clock = clock
        self._read_at = float("-inf")
        self._told = Progress()

    async def now(self) -> Progress:
        now = self._clock.boottime()
        if now - self._read_at >= AGE:
            told = await asyncio.to_thread(read, self._path) or Progress()
            if not told.message:
                told = replace(told, message=await self._last_line())
            self._read_at, self._told = now, told
        return self._told

    async def output(self, stream: Stream, offset: int, limit: int) -> Piece:
        """What it has printed from there on."""
        async with asyncio.timeout(TAIL_LIMIT):
            return await self._execution.output(stream, offset, limit)

    async def _last_line(self) -> str:
        try:
            async with asyncio.timeout(TAIL_LIMIT):
                return last_line(await self._execution.tail("stdout", 4096))
        except Exception as error:  # only a message is missing
            get("runner").debug("the last output cannot be read", why=reason_of(error))
            return ""


def read(path: str) -> Progress | None:
    """What the file named by REMOTEGPU_PROGRESS says last, or None if it says nothing.

    A line is `42 message`. A line without a number from 0 to 100 in front is a message alone.
    """
    # A task may put anything there: a FIFO would block us, a link could name a file of ours.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            return None
        data = os.pread(descriptor, READ_LIMIT, max(0, about.st_size - READ_LIMIT))
    finally:
        os.close(descriptor)
    line = last_line(data)
    if not line:
        return None
    match = _LINE.match(line)
    if match and int(match[1]) <= 100:
        return Progress(percent=int(match[1]), message=(match[2] or "").strip())
    return Progress(message=line)


def last_line(data: bytes) -> str:
    """The last line with something on it, as text that can be shown, at most 500 characters."""
    for line in reversed(data.split(b"\n")):
        text = line.decode("utf-8", "replace").replace("\0", "\ufffd").strip()
        text = text.rsplit("\r", 1)[-1].strip()  # a bar that draws over itself
        if text:
            return text[:MESSAGE_LIMIT]
    return ""
