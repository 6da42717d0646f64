"""Asks what this machine has, and lets the worker know when that has changed."""

from collections.abc import Callable

from agent_core.clock import Clock
from agent_core.hooks import Caller
from agent_core.inventory import Inventory
from agent_core.machine import Machine

LOOK_EVERY = 60.0  # seconds


class Survey:
    """Whoever asks for the inventory, its answer is learnt from."""

    def __init__(
        self, hooks: Caller, machine: Machine, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self._hooks = hooks
        self._machine = machine
        self._clock = clock
        self._changed = changed

    async def inventory(self) -> Inventory:
        """What the machine has now. A part that cannot be read is missing, and not given out."""
        found = await self._hooks.inventory()
        if self._machine.learn(found):
            self._changed()
        return found

    async def run(self) -> None:
        """Look again and again: a device may fall off, and come back."""
        while True:
            await self._clock.sleep(LOOK_EVERY)
            await self.inventory()
