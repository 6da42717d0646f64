"""Gives each free slot the task whose turn it is."""

from collections.abc import Mapping, Sequence

from agent_core import endings
from agent_core.arming import Arming
from agent_core.log import get
from agent_core.models import Key, Task
from agent_core.slots import Slots
from agent_core.waiting import Aside, Waiting
from agent_core.workbench import Workbench


class Turns:
    """Between what waits and the slots."""

    def __init__(self, bench: Workbench, waiting: Waiting, slots: Slots, ahead: int) -> None:
        self._bench = bench
        self._waiting = waiting
        self._slots = slots
        self._arming = Arming(bench, waiting, slots, ahead)
        self._log = get("worker")
        slots.followed = self._followed

    def _followed(self, key: Key) -> None:
        """Its executor began it by itself, where another run has ended."""
        self._waiting.remove(key)
        self._arming.begins(key)

    def renewed(self, key: Key) -> None:
        """It may begin later than was known when it was handed over."""
        self._arming.renewed(key)

    def take(self, held: Mapping[Key, Task], *, come: bool) -> None:
        """Let begin what can, and arm what comes next; `held` has each task as it stands.

        `come`: more waits than at the last turn; else only slots may have become free.
        """
        self._fill(held, come)
        self._arming.look(held, come=come)

    def _fill(self, held: Mapping[Key, Task], come: bool) -> None:
        """A slot that is free makes nobody make room: only who has come since does."""
        machine = self._bench.machine
        while self._waiting.in_line and (come or machine.free_slots):
            free = machine.free
            plan = self._waiting.plan(machine.running, free)
            if free.slots == 0:
                self._make_room(plan.preempt)
            chosen = plan.start[: free.slots]
            if not chosen:
                break
            for each in chosen:
                self._begin(held[each.key], plan.devices.get(each.key, ()))

    def _begin(self, task: Task, devices: Sequence[str]) -> None:
        """In a slot that is free, unless it may not begin now."""
        if self._bench.leases.over(task):
            self._log.info("its lease is over, waiting for a renewal", task=task.id)
            self._waiting.park(task, Aside.LEASE)
        elif self._slots.another_attempt(task):
            self._log.info("an older attempt at it is still here", task=task.id)
            self._waiting.park(task, Aside.OLDER)
        else:
            self._arming.begins(task.key)
            if self._slots.start(task, devices):
                self._waiting.remove(task.key)
            else:  # this scheduler does not look at what is free: it must not be asked for ever
                self._waiting.park(task, Aside.ROOM)

    def _make_room(self, keys: Sequence[Key]) -> None:
        """End runs for something more urgent: they wait again, and run when a slot is free."""
        for key in keys:
            if runner := self._slots.runner(key):
                self._log.info("makes room for something more urgent", task=runner.task.id)
                self._slots.stop(key, endings.preempted())
