"""A run's way to its slot: it has one, is given one, or follows a run that has ended."""

import asyncio
from collections.abc import Callable

from agent_core.execution import Ahead
from agent_core.hooks import Start
from agent_core.log import get
from agent_core.signals import resolve
from agent_core.workbench import Workbench


class Place:
    """One of these stands between a stored start and its execution."""

    def __init__(
        self,
        *,
        waits: bool = False,
        ready: Callable[[], None] = lambda: None,
        follows: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """`waits`: until `give`. `ready` is called when it may be handed over, `follows` when its
        executor began it by itself, where another run has ended; `lost` when its executor has it
        no more, and it must be taken back.
        """
        new = asyncio.get_running_loop().create_future
        self._turn: asyncio.Future[None] | None = new() if waits else None
        self._ready = ready
        self._follows = follows
        self._lost = lost
        self._ahead: Ahead | None = None
        self._handed = False
        self._began = False
        self.given_back = False  # before there was a slot

    @property
    def there(self) -> bool:
        return self._turn is None or self._turn.done()

    def give(self) -> None:
        if self._turn:
            resolve(self._turn)

    def give_back(self) -> None:
        """Wait no more for a slot, unless there is one by now."""
        if self._turn and not self._turn.done():
            self.given_back = True
            self._turn.set_result(None)

    async def reached(self, start: Start | None = None) -> None:
        """Returns when there is a slot, or it was given back."""
        if self._turn is None or self._turn.done():
            return
        if start and isinstance(start.answer, Ahead):
            self._ahead = start.answer
            self._ready()
        await self._turn

    def hand_over(self, until: float) -> bool:
        """Let the executor begin it where another run has ended, before the boot time `until`."""
        assert self._ahead, "it is ready"
        assert not self._handed
        self._handed = self._ahead.hand_over(until, self._follow, self._lost)
        return self._handed

    def _follow(self) -> None:
        if not self._began:
            self._began = True
            self._follows()

    async def taken_back(self, bench: Workbench) -> bool:
        """Let it not begin by itself any more. False: it has. Asked until its executor can tell."""
        backoff = bench.backoff()
        while self._handed and not self._began and self._ahead:
            try:
                recalled = await self._ahead.recall()
            except Exception:
                get("runner").exception("a start cannot be taken back now, trying again")
                await bench.clock.sleep(backoff.next())
                continue
            if recalled:
                self._handed = False
            else:
                self._follow()
        return not self._began
