"""A file that one process at a time may hold, with the holder's process id in it."""

import fcntl
import os
from pathlib import Path


class HeldElsewhere(Exception):
    """Another process holds the file; `pid` is what it wrote, or "unknown"."""

    def __init__(self, pid: str) -> None:
        super().__init__(f"held by process {pid}")
        self.pid = pid


def hold(path: Path) -> int:
    """Take the lock. Its descriptor: close it to let go; the end of the process does so too.

    Raises HeldElsewhere, and OSError where the file cannot be made or written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(path, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise HeldElsewhere(holder or "unknown") from None
    except BaseException:
        os.close(lock)
        raise
    return lock
