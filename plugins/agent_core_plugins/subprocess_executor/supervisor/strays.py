"""The strays: children that we adopted when their own parents ended, and whose run they are of."""

from __future__ import annotations

import os
import signal

from . import tree

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

    def __bool__(self) -> bool:
        return bool(self._owners)

    def look(
        self, mains: Collection[int], leaders: Mapping[int, str], told: Collection[str]
    ) -> bool:
        """Take in who is there now; are there any?

        `mains` are our own children, `leaders` the start ids of the runs not told as ended by the
        pid of their main process, `told` those of the others that are remembered.
        """
        adopted = _children(os.getpid()).difference(mains)
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


def _children(pid: int) -> set[int]:
    """Children of a single-threaded process, zombies too."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as file:
            parts = []
            while part := file.read(65536):
                parts.append(part)
        return set(map(int, b"".join(parts).split()))
    except FileNotFoundError:  # a kernel built without CONFIG_PROC_CHILDREN
        return {one.pid for one in tree.snapshot().values() if one.parent == pid}
