"""Which processes belong together: what /proc tells of parents, sessions and environments."""

from __future__ import annotations

import os
import signal
import time
from collections import namedtuple

MARKER = b"REMOTEGPU_START_ID="
PF_EXITING = 0x4
SLACK = 0.0001  # seconds
ENVIRON_LIMIT = 4 * 1024 * 1024  # bytes of an environment that are searched

Process = namedtuple("Process", "pid state parent group session flags ticks")
"""One row of /proc; ticks is the start time, which with the pid names a process for ever."""


class StartTimes:
    """The start time of a child that was just begun, as /proc would say it.

    It is the boot time in ticks, so that the moments before and after tell it, unless a tick went
    by in between or this kernel has its own way: then /proc is read.
    """

    def __init__(self) -> None:
        self._second = os.sysconf("SC_CLK_TCK")
        self._agree: bool | None = None  # do /proc and our clock? None: nobody has looked

    def of(self, pid: int, before: float) -> int:
        """Our child, not reaped. `before` is the boot time before it began."""
        first = int((before - SLACK) * self._second)
        last = int((time.clock_gettime(time.CLOCK_BOOTTIME) + SLACK) * self._second)
        if first == last and self._agree:
            return first
        one = process(pid)
        if one is None:
            return 0
        ticks: int = one.ticks
        if self._agree is not False:
            self._agree = first <= ticks <= last
        return ticks


def process(pid: int) -> Process | None:
    """A process as it is now, or None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            data = file.read(1024)
        fields = data[data.rindex(b")") + 2 :].split()  # the name may hold anything
        state = fields[0].decode("ascii")
        return Process(pid, state, *map(int, (*fields[1:4], fields[6], fields[19])))
    except (OSError, ValueError, IndexError):
        return None


def snapshot() -> dict[int, Process]:
    """Every process, zombies too."""
    found = (process(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return {one.pid: one for one in found if one is not None}


def marker(pid: int) -> str:
    """The start id in the environment that a process was given; "" if it has none."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            data = b"\0" + file.read(ENVIRON_LIMIT)
    except OSError:
        return ""
    at = data.find(b"\0" + MARKER)
    if at < 0:
        return ""
    value = data[at + 1 + len(MARKER) :].split(b"\0", 1)[0]
    return value.decode("utf-8", "surrogateescape")


def family(everything: dict[int, Process], roots: set[int]) -> set[int]:
    """The roots and all that descend from them."""
    children: dict[int, list[int]] = {}
    for one in everything.values():
        children.setdefault(one.parent, []).append(one.pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def marked(start_id: str) -> set[int]:
    """Every process whose environment names that start."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
    return {pid for pid in pids if marker(pid) == start_id}


def lives(one: Process | None) -> bool:
    """Zombies do not count: they run no more, and whoever has to will reap them."""
    return one is not None and one.state not in "ZX"


def dying(one: Process) -> bool:
    """It executes nothing of its own any more, and its environment is gone."""
    return bool(one.flags & PF_EXITING)


def send(one: Process, signum: int) -> bool:
    """Signal that very process, not another that has its number by now. False if it is gone."""
    try:
        descriptor = os.pidfd_open(one.pid)
    except OSError:
        return False
    try:
        now = process(one.pid)
        if now is None or now.ticks != one.ticks:
            return False
        signal.pidfd_send_signal(descriptor, signum)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def send_group(leader: int, signum: int) -> None:
    """Signal a process group, if it still has members."""
    try:
        os.killpg(leader, signum)
    except (ProcessLookupError, PermissionError):
        return
