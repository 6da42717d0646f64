"""Which processes belong to a run: what /proc tells of parents, sessions and environments."""

import os
from typing import NamedTuple, Self

PF_EXITING = 0x4
ENVIRON_LIMIT = 4 * 1024 * 1024  # bytes of an environment that are searched


class Process(NamedTuple):
    """One row of /proc."""

    pid: int
    state: str  # one letter; Z is a zombie
    parent: int
    group: int
    session: int
    flags: int
    ticks: int  # start time since boot; with the pid it names a process for ever
    marked: bool = False  # bears the start id that was looked for

    @property
    def dying(self) -> bool:
        """It executes nothing of its own any more, but may still hold files open."""
        return bool(self.flags & PF_EXITING)

    @classmethod
    def read(cls, pid: int, mark: bytes = b"") -> Self | None:
        """A process as it is now, or None if there is none.

        The mark is looked for first: one whose environment is gone by then is surely seen dying.
        """
        marked = bool(mark) and _bears(pid, mark)
        try:
            with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
                data = file.read(1024)
            fields = data[data.rindex(b")") + 2 :].split()  # the name may hold anything
            parent, group, session = map(int, fields[1:4])
            flags, ticks = int(fields[6]), int(fields[19])
            state = fields[0].decode("ascii")
            return cls(pid, state, parent, group, session, flags, ticks, marked)
        except (OSError, ValueError, IndexError):
            return None


def living(start_id: str) -> dict[int, Process]:
    """Every process that is no zombie, and whether it bears a run's marker."""
    mark = b"\0REMOTEGPU_START_ID=%s\0" % os.fsencode(start_id)
    rows = (Process.read(int(name), mark) for name in os.listdir("/proc") if name.isdecimal())
    return {row.pid: row for row in rows if row is not None and row.state not in "ZX"}


def remains(
    everything: dict[int, Process], leader: Process | None, seen: set[Process]
) -> set[Process]:
    """What is left of a run whose main process has ended, `leader` as it once was.

    `seen` is the former answer, empty at first. A process that dies has no environment any more
    and cannot be told from others', so at first every one that dies and is not older than the run
    is waited for too: that is a matter of milliseconds.
    """
    now = everything.get(leader.pid) if leader else None
    # A session keeps its number while a member lives; whoever has the number now is a stranger.
    number = leader.pid if leader and (now is None or now.ticks == leader.ticks) else 0
    left = {everything[pid] for pid in of_run(everything, number)}
    since = leader.ticks if leader else 0
    known = {(row.pid, row.ticks) for row in seen}
    for row in everything.values():
        stays = (row.pid, row.ticks) in known if known else row.dying and row.ticks >= since
        if stays:
            left.add(row)
    return left


def of_run(everything: dict[int, Process], leader: int) -> set[int]:
    """Whoever is in the leader's session or group, bears the run's marker, or descends from one.

    A `leader` of 0 is nobody's.
    """
    roots = {
        row.pid
        for row in everything.values()
        if row.marked or (leader and leader in (row.pid, row.session, row.group))
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
