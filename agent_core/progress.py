"""How far a run says it is: the last line of its progress file, else its last line of output."""

import os
import re

from agent_core.models import Progress

READ_LIMIT = 64 * 1024  # bytes of the file that are looked at, from its end
MESSAGE_LIMIT = 500  # characters
_LINE = re.compile(r"\s*(\d{1,3})(?:\s*%)?(?:\s+(.*))?$")


def read(path: str) -> Progress | None:
    """What the file named by REMOTEGPU_PROGRESS says last, or None if it says nothing.

    A line is `42 message`. A line without a number from 0 to 100 in front is a message alone.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - READ_LIMIT))
            data = file.read(READ_LIMIT)
    except OSError:
        return None
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
        text = line.decode("utf-8", "replace").replace("\0", "\ufffd").split("\r")[-1].strip()
        if text:
            return text[:MESSAGE_LIMIT]
    return ""
