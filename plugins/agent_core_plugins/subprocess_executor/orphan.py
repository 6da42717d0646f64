"""A run whose supervisor is gone: watched until nothing of it is left, then told as lost.

How it ended cannot be learned any more, and is never guessed.
"""

import asyncio
import contextlib
import os
import signal

from agent_core import Clock

from .known import Line
from .supervisor import tree

LOOK_AGAIN = 0.05  # seconds between two looks at a tree that is being killed
LOOK_AT_MOST = 1.0  # seconds; each look doubles the wait


class Orphan:
    """One such run. `facts` are the supervisor's: pid and start time of its main process."""

    def __init__(self, start_id: str, facts: Line, clock: Clock) -> None:
        self._start_id = start_id
        self._pid: int = facts["pid"]
        self._ticks: int = facts["ticks"]
        self._clock = clock

    def alive(self) -> bool:
        """Does its main process live?"""
        now = tree.process(self._pid)
        return now is not None and now.ticks == self._ticks and now.state not in "ZX"

    def left(self) -> set[tree.Process]:
        """Whoever lives of it: in its session or group, marked with its id, or descended."""
        return self._look()[0]

    def _look(self) -> tuple[set[tree.Process], set[tree.Process]]:
        """Those, and whoever else is just dying and no older than the run.

        A process that dies has no environment any more, so it cannot be told whose it was.
        """
        roots = tree.marked(self._start_id)  # first: whose environment is gone is then seen dying
        everything = tree.snapshot()
        one = everything.get(self._pid)
        # A session keeps its number while a member lives; whoever has it now is a stranger.
        if one is None or one.ticks == self._ticks:
            roots |= {
                row.pid for row in everything.values() if self._pid in (row.group, row.session)
            }
        found = {everything[pid] for pid in tree.family(everything, roots) if pid in everything}
        living = {row for row in everything.values() if tree.lives(row)}
        dying = {row for row in living if tree.dying(row) and row.ticks >= self._ticks}
        return found & living, dying

    async def gone(self) -> None:
        """Returns when nothing of it is left. After its main process the rest is killed."""
        await self._main_gone()
        wait = LOOK_AGAIN
        left, dying = self._look()
        while left or dying:
            self._send(left, signal.SIGKILL)
            await self._clock.sleep(wait)
            wait = min(2 * wait, LOOK_AT_MOST)
            seen = {(row.pid, row.ticks) for row in left | dying}
            left, dying = self._look()
            dying = {row for row in dying if (row.pid, row.ticks) in seen}

    def signal(self, signum: int) -> bool:
        """Signal the whole tree. False if its main process is gone."""
        if not self.alive():
            return False
        self._send(self.left(), signum)
        return True

    @staticmethod
    def _send(processes: set[tree.Process], signum: int) -> None:
        """The eldest first: a main process must not end well because it saw a child killed."""
        for one in sorted(processes, key=lambda one: (one.ticks, one.pid)):
            tree.send(one, signum)

    async def _main_gone(self) -> None:
        """Wait for the end of the main process, by a pidfd: no polling."""
        try:
            descriptor = os.pidfd_open(self._pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        try:
            if not self.alive():
                return
            loop.add_reader(descriptor, _resolve, ended)
            await ended
        finally:
            with contextlib.suppress(ValueError):
                loop.remove_reader(descriptor)
            os.close(descriptor)


async def look_for(start_id: str, clock: Clock) -> Line | None:
    """The process that bears a start's marker: looked for twice, since it may just be between
    fork and exec. None: there is none."""
    for pause in (1.0, 0.0):
        found = (tree.process(pid) for pid in tree.marked(start_id))
        marked = [one for one in found if one is not None and tree.lives(one)]
        if marked:
            leaders = [one for one in marked if one.pid == one.session] or marked
            first = min(leaders, key=lambda one: one.ticks)
            return {"pid": first.pid, "ticks": first.ticks}
        await clock.sleep(pause)
    return None


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
