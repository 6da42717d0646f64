"""The private directories of runs, made and removed in a thread, many at a time."""

import asyncio
from collections.abc import Sequence

from agent_core import launch as launching
from agent_core.log import about_nothing
from agent_core.models import Launch

GATHER = 0.05  # seconds for which rooms that are left wait for company
LEFT = 1000  # rooms at most that wait; then those who leave wait until some are gone


class Rooms:
    """On a busy disk each of these calls may take milliseconds; the agent does not wait for it.

    One thread at a time makes and clears them: two would wait for each other in the kernel. What
    takes long, a room that a task filled, is emptied in another.
    """

    def __init__(self) -> None:
        self._wanted: list[tuple[Launch, asyncio.Future[None]]] = []
        self._making: asyncio.Task[None] | None = None
        self._left: list[Launch] = []
        self._leaving: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def make(self, launch: Launch) -> None:
        """Raises OSError."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append((launch, future))
        if self._making is None:
            making = self._make_all()
            self._making = asyncio.create_task(making, name="make rooms", context=about_nothing())
        await future

    async def leave(self, launch: Launch) -> None:
        """Soon nothing of it is left, whatever the task put there."""
        while len(self._left) >= LEFT and self._leaving:
            await asyncio.wait({self._leaving})
        self._left.append(launch)
        if self._leaving is None:
            leaving = self._leave_all()
            self._leaving = asyncio.create_task(
                leaving, name="leave rooms", context=about_nothing()
            )

    async def left(self) -> None:
        """Returns when nothing is left of those that were left."""
        while self._leaving:
            await asyncio.wait({self._leaving})

    async def _make_all(self) -> None:
        try:
            while self._wanted:
                async with self._turn:
                    batch, self._wanted = self._wanted, []
                    launches = [launch for launch, _ in batch]
                    errors = await asyncio.to_thread(_make, launches)
                for (_, future), error in zip(batch, errors, strict=True):
                    if future.done():
                        continue  # whoever waited was cancelled
                    if error is None:
                        future.set_result(None)
                    else:
                        future.set_exception(error)
        finally:
            self._making = None

    async def _leave_all(self) -> None:
        try:
            while self._left:
                await asyncio.sleep(GATHER)
                async with self._turn:
                    batch, self._left = self._left, []
                    full = await asyncio.to_thread(_clear, batch)
                if full:
                    await asyncio.to_thread(_clear_full, full)
        finally:
            self._leaving = None


def _make(batch: Sequence[Launch]) -> list[Exception | None]:
    """One that fails stops no other."""
    errors: list[Exception | None] = []
    for launch in batch:
        try:
            launching.make_room(launch)
        except Exception as error:  # an OSError, or a script that is no text
            errors.append(error)
        else:
            errors.append(None)
    return errors


def _clear(batch: Sequence[Launch]) -> list[Launch]:
    """Those that have something in them are left to be emptied."""
    return [launch for launch in batch if not launching.clear_room(launch)]


def _clear_full(batch: Sequence[Launch]) -> None:
    for launch in batch:
        launching.clear_full_room(launch)
