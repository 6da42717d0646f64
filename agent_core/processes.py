"""Which processes belong to a run: what /proc tells of parents, sessions and environments."""

import os
from typing import NamedTuple, Self

ENVIRON_LIMIT = 4 * 1024 * 1024  # bytes of an environment that are searched


class Process(NamedTuple):
    """One row of /proc."""

    pid: int
    state: str  # one letter; Z is a zombie
    parent: int
    group: int
    session: int

    @classmethod
    def read(cls, pid: int) -> Self | None:
        """A process as it is now, or None if there is none."""
        try:
            with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
                data = file.read(1024)
            fields = data[data.rindex(b")") + 2 :].split()  # the name may hold anything
            return cls(pid, fields[0].decode("ascii"), *map(int, fields[1:4]))
        except (OSError, ValueError, IndexError):
            return None


def living() -> dict[int, Process]:
    """Every process that is no zombie."""
    rows = (Process.read(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return {row.pid: row for row in rows if row is not None and row.state not in "ZX"}


def of_run(everything: dict[int, Process], leader: int, start_id: str) -> set[int]:
    """Whoever is in the leader's session or group, bears the run's marker, or descends from one.

    A `leader` of 0 is nobody's.
    """
    mark = b"\0REMOTEGPU_START_ID=%s\0" % os.fsencode(start_id)
    roots = {
        row.pid
        for row in everything.values()
        if (leader and leader in (row.pid, row.session, row.group)) or _bears(row.pid, mark)
    }
    return roots | descendants(everything, roots)


def descendants(everything: dict[int, Process], roots: set[int]) -> set[int]:
    """All that descend from the roots, without them."""
    children: dict[int, list[int]] = {}
    for row in everything.values():
        children.setdefault(row.parent, []).append(row.pid)
    found: set[int] = set()
    waiting = [child for root in roots for child in children.get(root, ())]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found - roots


def program(pid: int) -> str:
    """The file that a process executes; "" if it cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _bears(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return mark in b"\0" + file.read(ENVIRON_LIMIT)
    except OSError:
        return False
