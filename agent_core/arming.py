"""Has the starts of the next tasks stored while no slot is free: a free one begins at once."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import dropwhile

from agent_core.models import Key, Task
from agent_core.slots import Slots
from agent_core.waiting import Waiting
from agent_core.workbench import Workbench


class Arming:
    """Which of the waiting tasks are *armed*: assigned in the store, and without a slot.

    They stay in line as they were, so that the scheduler alone says who is next. One that others
    have overtaken gives its start back, where more would be armed than `ahead`. A task that asks
    for resources is not armed: what it gets is chosen when it begins.

    Those armed who come next are *handed over*, if their executor can begin them by itself where a
    run ends: in their order, and as far as nobody stands between who is not armed. They are taken
    back for whoever is more urgent; among equals an order that was handed over stays.
    Whose lease was renewed or whom its executor has no more is handed over anew, and so are those
    behind it: else they would overtake it, again and again.
    """

    def __init__(self, bench: Workbench, waiting: Waiting, slots: Slots, ahead: int) -> None:
        self._bench = bench
        self._waiting = waiting
        self._slots = slots
        self._ahead = ahead  # starts at most that are stored so; 0: none
        self._overtaken = False  # somebody who was not armed began
        self._came = False  # somebody has come who may be more urgent than who comes next
        self._order: dict[Key, int] = {}  # who comes next, with their priorities
        self._held: Mapping[Key, Task] = {}  # each task as it stands
        self._ready: set[Key] = set()  # stored, and could be handed over
        self._handed: dict[Key, int] = {}  # in their order, with their priorities
        self._coming_back: set[Key] = set()  # nobody is handed over meanwhile
        slots.ready = self._now_ready
        slots.lost = self._anew
        slots.gone = self._forget

    def begins(self, key: Key) -> None:
        """This one is given a slot."""
        if key not in self._slots.armed and key not in self._handed:
            self._overtaken = True
        self._ready.discard(key)
        self._handed.pop(key, None)

    def renewed(self, key: Key) -> None:
        """Its lease ends later than its executor knows, if that has it."""
        if key in self._handed:
            self._anew(key)
        elif key in self._slots.armed:
            self._overtaken = True  # maybe, as long as its lease was over

    def look(self, held: Mapping[Key, Task], *, come: bool) -> None:
        """Arm who comes next: some at a time, or when somebody was overtaken, not at each turn."""
        self._held = held
        self._came = self._came or come
        if not self._ahead or not self._waiting.in_line or self._bench.machine.free_slots:
            return
        few = len(self._slots.armed) <= self._ahead // 2
        if few or self._overtaken or (come and self._more_urgent(self._handed)):
            self._arm()

    def _more_urgent(self, coming: Mapping[Key, int]) -> bool:
        """Does somebody wait who should begin before one of these?"""
        priorities = [each for key, each in coming.items() if key in self._waiting]
        if not priorities:
            return False
        least = max(priorities)
        known = sum(priority < least for priority in priorities)
        return self._waiting.as_urgent_as(least - 1) > known

    def _arm(self) -> None:
        self._overtaken = self._came = False
        machine = self._bench.machine
        plan = self._waiting.plan(machine.running, replace(machine.free, slots=self._ahead))
        following = plan.start[: self._ahead]
        plain = [task for task in following if not task.resources]
        for key in self._slots.armed - {task.key for task in plain}:
            self._waiting.remove(key)  # when its start is given back it waits again
            self._forget(key)
            self._slots.disarm(key)
        others = [task for task in following if task.key not in self._handed]
        if others:
            urgent = min(task.priority for task in others)
            self._take_back([key for key, each in self._handed.items() if each > urgent])
        self._order = {**self._handed, **{each.key: each.priority for each in following}}
        for task in plain:
            if task.key in self._slots.armed or self._bench.leases.over(task):
                continue
            if not self._slots.another_attempt(task):
                self._slots.arm(self._held[task.key])
        self._hand_over()

    # --- handed over

    def _now_ready(self, key: Key) -> None:
        """Its start is stored, its room is made, and its executor could begin it by itself."""
        self._ready.add(key)
        self._hand_over()

    def _hand_over(self) -> None:
        """As many as come next without anybody between them."""
        if self._coming_back or self._bench.machine.free_slots:
            return
        if self._came and self._more_urgent(self._order):  # since the next ones were chosen
            self._arm()
            return
        for key in self._order:
            if key in self._handed or key not in self._waiting:
                continue
            runner = self._slots.runner(key)
            if key not in self._ready or key not in self._slots.armed or runner is None:
                break
            if self._bench.leases.over(runner.task):
                continue
            if self._slots.another_attempt(runner.task) or not self._slots.hand_over(key):
                break
            self._handed[key] = runner.task.priority

    def _anew(self, key: Key) -> None:
        """It is handed over again, and those behind it."""
        if key in self._handed:
            self._take_back(list(dropwhile(lambda each: each != key, self._handed)))

    def _take_back(self, keys: Iterable[Key]) -> None:
        for key in keys:
            del self._handed[key]
            self._coming_back.add(key)
            self._slots.take_back(key, partial(self._back, key))

    def _back(self, key: Key) -> None:
        self._coming_back.discard(key)
        self._hand_over()

    def _forget(self, key: Key) -> None:
        self._ready.discard(key)
        self._handed.pop(key, None)
