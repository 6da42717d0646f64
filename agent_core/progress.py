"""How far a run says it is: the last line of its progress file, else its last line of output."""

import os
import re
import stat

from agent_core.models import Progress

READ_LIMIT = 64 * 1024  # bytes of the file that are looked at, from its end
MESSAGE_LIMIT = 500  # characters
_LINE = re.compile(r"\s*(\d{1,3})(?:\s*%)?(?:\s+(.*))?$")


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
