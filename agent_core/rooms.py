"""The private directories of runs, made and removed in a thread, many at a time."""

import asyncio
from collections.abc import Callable, Sequence

from agent_core import launch as launching
from agent_core.models import Launch


class Rooms:
    """On a busy disk each of these calls may take milliseconds; the agent does not wait for it."""

    def __init__(self) -> None:
        self._wanted: list[tuple[Callable[[Launch], object], Launch, asyncio.Future[None]]] = []
        self._job: asyncio.Task[None] | None = None

    async def make(self, launch: Launch) -> None:
        """Raises OSError."""
        await self._do(launching.make_room, launch)

    async def leave(self, launch: Launch) -> None:
        """Nothing of it is left, whatever the task put there."""
        await self._do(launching.leave_room, launch)

    async def _do(self, work: Callable[[Launch], object], launch: Launch) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append((work, launch, future))
        if self._job is None:
            self._job = asyncio.create_task(self._do_all(), name="rooms")
        await future

    async def _do_all(self) -> None:
        try:
            while self._wanted:
                batch, self._wanted = self._wanted, []
                errors = await asyncio.to_thread(
                    _each, [(work, launch) for work, launch, _ in batch]
                )
                for (_, _, future), error in zip(batch, errors, strict=True):
                    if future.done():
                        continue  # whoever waited was cancelled
                    if error is None:
                        future.set_result(None)
                    else:
                        future.set_exception(error)
        finally:
            self._job = None


def _each(batch: Sequence[tuple[Callable[[Launch], object], Launch]]) -> list[Exception | None]:
    """In the thread: one that fails stops no other."""
    errors: list[Exception | None] = []
    for work, launch in batch:
        try:
            work(launch)
        except Exception as error:  # an OSError, or a name that cannot be one
            errors.append(error)
        else:
            errors.append(None)
    return errors
