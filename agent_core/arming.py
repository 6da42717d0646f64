"""Has the starts of the next tasks stored while no slot is free: a free one begins at once."""

from collections.abc import Mapping

from agent_core import attempts
from agent_core.api.resources import Free
from agent_core.models import Key, Task
from agent_core.slots import Slots
from agent_core.waiting import Waiting
from agent_core.workbench import Workbench


class Arming:
    """Which of the waiting tasks are *armed*: assigned in the store, and without a slot.

    They stay in line as they were, so that the scheduler alone says who is next. One that others
    have overtaken gives its start back, where more would be armed than `ahead`. A task that asks
    for resources is not armed: what it gets is chosen when it begins.
    """

    def __init__(self, bench: Workbench, waiting: Waiting, slots: Slots, ahead: int) -> None:
        self._bench = bench
        self._waiting = waiting
        self._slots = slots
        self._ahead = ahead  # starts at most that are stored so; 0: none
        self._overtaken = False  # somebody who was not armed began

    def begins(self, key: Key) -> None:
        """This one is given a slot."""
        if key not in self._slots.armed:
            self._overtaken = True

    def look(self, held: Mapping[Key, Task]) -> None:
        """Arm who comes next: some at a time, or when somebody was overtaken, not at each turn."""
        if not self._ahead or not self._waiting.in_line or self._bench.machine.free_slots:
            return
        if self._overtaken or len(self._slots.armed) <= self._ahead // 2:
            self._overtaken = False
            self._arm(held)

    def _arm(self, held: Mapping[Key, Task]) -> None:
        running = self._bench.machine.running
        plan = self._waiting.plan(running, Free(slots=self._ahead))
        following = [task for task in plan.start[: self._ahead] if not task.resources]
        for key in self._slots.armed - {task.key for task in following}:
            self._waiting.remove(key)  # when its start is given back it waits again
            self._slots.disarm(key)
        for task in following:
            if task.key in self._slots.armed or self._bench.leases.over(task):
                continue
            if not attempts.one_runs(task, self._slots.tasks):
                self._slots.arm(held[task.key])
