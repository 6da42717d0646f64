"""The private directories of runs, made and removed in a thread, many at a time."""

import asyncio
from collections import deque
from collections.abc import Sequence

from agent_core import launch as launching
from agent_core.log import about_nothing
from agent_core.models import Launch
from agent_core.signals import Bell

GATHER = 0.05  # seconds for which rooms that are left wait for company
LEFT = 1000  # rooms at most that wait; then those who leave wait until some are gone
SPARE = 64  # empty rooms at most that wait for another run: a new one costs eight times as much
QUIET = 1.0  # seconds after which spare rooms are removed, if no run has left one


class Rooms:
    """On a busy disk each of these calls may take milliseconds; the agent does not wait for it.

    One thread at a time makes and clears them: two would wait for each other in the kernel. What
    takes long, a room that a task filled, is emptied in another.
    """

    def __init__(self) -> None:
        self._wanted: list[tuple[Launch, asyncio.Future[None]]] = []
        self._making: asyncio.Task[None] | None = None
        self._left: list[tuple[Launch, bool]] = []
        self._leaving: asyncio.Task[None] | None = None
        self._pause = Bell()
        self._over = False  # whatever is left goes at once
        self._spare: deque[str] = deque()  # used and filled in the thread whose turn it is
        self._turn = asyncio.Lock()

    async def make(self, launch: Launch) -> None:
        """Raises OSError."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append((launch, future))
        if self._making is None:
            making = self._make_all()
            self._making = asyncio.create_task(making, name="make rooms", context=about_nothing())
        await future

    async def leave(self, launch: Launch, *, over: bool = False) -> None:
        """Soon nothing of it is left, whatever the task put there.

        `over`: no process of the run is left, so an empty room may be another's.
        """
        while len(self._left) >= LEFT and self._leaving:
            await asyncio.wait({self._leaving})
        self._left.append((launch, over))
        if self._leaving is None:
            self._leave_soon()

    async def left(self) -> None:
        """Returns when nothing is left of those that were left."""
        while self._leaving:
            self._over = True
            self._pause.ring()
            await asyncio.wait({self._leaving})

    async def _make_all(self) -> None:
        try:
            while self._wanted:
                async with self._turn:
                    batch, self._wanted = self._wanted, []
                    launches = [launch for launch, _ in batch]
                    errors = await asyncio.to_thread(self._make, launches)
                for (_, future), error in zip(batch, errors, strict=True):
                    if future.done():
                        continue  # whoever waited was cancelled
                    if error is None:
                        future.set_result(None)
                    else:
                        future.set_exception(error)
        finally:
            self._making = None

    def _leave_soon(self) -> None:
        leaving = self._leave_all()
        self._leaving = asyncio.create_task(leaving, name="leave rooms", context=about_nothing())

    async def _leave_all(self) -> None:
        """While rooms are left, and then for as long as spare ones may be of use."""
        try:
            quiet = 0.0
            while quiet < QUIET and not (self._over and not self._left):
                await self._pause.rings(GATHER)
                quiet = 0.0 if self._left else quiet + GATHER
                while self._left:
                    batch, self._left = self._left, []
                    await self._clear_all(batch)
            async with self._turn:
                await asyncio.to_thread(self._clear_spare)
        finally:
            self._leaving, self._over = None, False
        if self._left:  # while the last of the spare ones went
            self._leave_soon()

    async def _clear_all(self, batch: Sequence[tuple[Launch, bool]]) -> None:
        async with self._turn:
            full = await asyncio.to_thread(self._clear, batch)
        if full:
            await asyncio.to_thread(_clear_full, full)

    # --- in the thread

    def _make(self, batch: Sequence[Launch]) -> list[Exception | None]:
        """One that fails stops no other."""
        errors: list[Exception | None] = []
        for launch in batch:
            try:
                launching.make_room(launch, self._spare.popleft() if self._spare else "")
            except Exception as error:  # an OSError, or a script that is no text
                errors.append(error)
            else:
                errors.append(None)
        return errors

    def _clear(self, batch: Sequence[tuple[Launch, bool]]) -> list[Launch]:
        """Those that have something in them are left to be emptied."""
        full = []
        for launch, over in batch:
            keep = over and len(self._spare) < SPARE
            if not launching.clear_room(launch, keep=keep):
                full.append(launch)
            elif keep:
                self._spare.append(launch.scratch)
        return full

    def _clear_spare(self) -> None:
        while self._spare:
            launching.remove_spare(self._spare.popleft())


def _clear_full(batch: Sequence[Launch]) -> None:
    for launch in batch:
        launching.clear_full_room(launch)
