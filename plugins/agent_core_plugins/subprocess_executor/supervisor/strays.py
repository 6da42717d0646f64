"""The strays: children that we adopted when their own parents ended, and whose run they are of."""

from __future__ import annotations

import os
import signal

from . import tree

PAGE = 65536  # bytes that are read at once
FULL = 4000  # bytes in one read from which on there may be more: it ends with a page of memory
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class Strays:
    """Every adopted child, with the runs that it may be of.

    Known by session, group or marker, it is of one run; else of any that lived when it was first
    seen, until all but one of them have ended. One that is of none is to be killed.
    """

    def __init__(self) -> None:
        self._owners: dict[int, set[str]] = {}
        pid = os.getpid()
        try:
            self._file = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel built without CONFIG_PROC_CHILDREN
            self._file = -1

    def __bool__(self) -> bool:
        return bool(self._owners)

    def none_beside(self, mains: int) -> bool:
        """Have we as many children as there are main processes, which all are?"""
        data = self._listed()
        return data is not None and len(data.split()) == mains

    def _listed(self) -> bytes | None:
        """The pids of our children, zombies too; None if they cannot be read.

        Only we remove any from that list, so that no part of it moves between two reads.
        """
        if self._file < 0:
            return None
        data = part = os.pread(self._file, PAGE, 0)
        while len(part) >= FULL:
            part = os.pread(self._file, PAGE, len(data))
            data += part
        return data

    def _children(self) -> set[int]:
        data = self._listed()
        if data is not None:
            return set(map(int, data.split()))
        ours = os.getpid()
        return {one.pid for one in tree.snapshot().values() if one.parent == ours}

    def look(
        self, mains: Collection[int], leaders: Mapping[int, str], told: Collection[str]
    ) -> bool:
        """Take in who is there now; are there any?

        `mains` are our own children, `leaders` the start ids of the runs not told as ended by the
        pid of their main process, `told` those of the others that are remembered.
        """
        adopted = self._children().difference(mains)
        for pid in self._owners.keys() - adopted:
            del self._owners[pid]
        for pid in adopted - self._owners.keys():
            one = tree.process(pid)
            if one is not None:
                self._owners[pid] = _owners(one, leaders, told)
        return bool(self._owners)

    def of(self, start_id: str) -> set[int]:
        """Those that are certainly of this run."""
        return {pid for pid, owners in self._owners.items() if owners == {start_id}}

    def of_nobody(self) -> set[int]:
        return {pid for pid, owners in self._owners.items() if not owners}

    def reaped(self, pid: int) -> None:
        self._owners.pop(pid, None)

    def ended(self, start_id: str) -> None:
        """That run is told as ended: nothing is of it any more."""
        for owners in self._owners.values():
            owners.discard(start_id)


def kill(everything: dict[int, tree.Process], roots: set[int]) -> None:
    """These, and all that descend from them."""
    for pid in tree.family(everything, roots):
        one = everything.get(pid)
        if one is not None:
            tree.send(one, signal.SIGKILL)


def _owners(one: tree.Process, leaders: Mapping[int, str], told: Collection[str]) -> set[str]:
    owner = leaders.get(one.session) or leaders.get(one.group) or tree.marker(one.pid)
    known = set(leaders.values())
    if owner in known:
        return {owner}
    return set() if owner in told else known
