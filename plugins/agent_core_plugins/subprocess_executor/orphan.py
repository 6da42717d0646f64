"""A run whose supervisor is gone: watched until nothing of it is left, then told as lost.

How it ended cannot be learned any more, and is never guessed.
"""

import asyncio
import contextlib
import os
import signal

from agent_core import Clock

from .link import Line
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

    def left(self) -> set[int]:
        """Whoever lives of it."""
        everything = tree.snapshot()
        one = everything.get(self._pid)
        # The number still is its session's as long as one member lives, so nobody else can have
        # got it; but if another process has it now, the whole session is gone.
        reused = one is not None and one.ticks != self._ticks
        return tree.belonging(everything, self._start_id, 0 if reused else self._pid)

    async def gone(self) -> None:
        """Returns when nothing of it is left. After its main process the rest is killed."""
        await self._main_gone()
        wait = LOOK_AGAIN
        while left := self.left():
            self._send(left, signal.SIGKILL)
            await self._clock.sleep(wait)
            wait = min(2 * wait, LOOK_AT_MOST)

    def signal(self, signum: int) -> bool:
        """Signal the whole tree. False if its main process is gone."""
        if not self.alive():
            return False
        self._send(self.left(), signum)
        return True

    @staticmethod
    def _send(pids: set[int], signum: int) -> None:
        for pid in pids:
            one = tree.process(pid)
            if one is not None:
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
        marked = [
            one
            for one in tree.snapshot().values()
            if one.state not in "ZX" and tree.marker(one.pid) == start_id
        ]
        if marked:
            leaders = [one for one in marked if one.pid == one.session] or marked
            first = min(leaders, key=lambda one: one.ticks)
            return {"pid": first.pid, "ticks": first.ticks}
        await clock.sleep(pause)
    return None


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
