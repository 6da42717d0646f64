"""The waiting line: who starts now, and who waits although others behind it start."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agent_core import Device, Free, Key, Plan, Running, Task, resources
from agent_core_plugins.priority_scheduler.order import Order
from agent_core_plugins.priority_scheduler.victims import makes_room, room_that_comes, victims

PASSES = 10  # starts behind it that may take what a task waits for; then it is kept for that task


@dataclass(slots=True)
class Waiter:
    """A task that does not fit what is free, and how often others have taken what it waits for."""

    task: Task
    passed: int


class Line:
    """The most urgent first, and of those the one that came first, as far as they fit.

    Who does not fit is passed by those behind it, so that nothing stands idle, but not for ever:
    after PASSES starts at its cost, what it asks for is kept for it.
    """

    def __init__(self) -> None:
        self._order = Order()
        self._passed: dict[Key, int] = {}  # of those that wait and were passed
        self._passing: dict[Key, list[Key]] = {}  # of the last plan: at whose cost each starts

    def __len__(self) -> int:
        return len(self._order)

    def add(self, task: Task) -> None:
        self._order.add(task)

    def remove(self, key: Key) -> None:
        self._order.remove(key)
        self._passed.pop(key, None)
        for waiting in self._passing.pop(key, ()):
            if waiting in self._order:
                self._passed[waiting] = self._passed.get(waiting, 0) + 1

    def next(self, running: Collection[Running], free: Free) -> Plan:
        self._passing = {}
        if not self._order:
            return Plan()
        if free.slots > 0:
            return self._starts(running, free)
        first = self._order.most_urgent
        if first is None or not makes_room(running, first):
            return Plan()
        with self._order.walk() as walk:
            return Plan(preempt=victims(walk, running, free))

    def _starts(self, running: Collection[Running], free: Free) -> Plan:
        chosen: list[Task] = []
        devices: dict[Key, Sequence[str]] = {}
        waiters: list[Waiter] = []
        soon = room_that_comes(running, free)
        with self._order.walk() as walk:
            while free.slots > 0 and (task := walk.next()) is not None:
                given = resources.fitting(task.resources, free)
                if given is None:
                    walk.pass_over()
                    waiter = Waiter(task, self._passed.get(task.key, 0))
                    comes = soon is not None and resources.fitting(task.resources, soon) is not None
                    if comes or waiter.passed >= PASSES:
                        free = resources.kept_for(task.resources, free)
                    else:
                        waiters.append(waiter)
                    continue
                chosen.append(task)
                free = resources.without(free, task.resources, given)
                if task.resources:
                    devices[task.key] = [device.uuid for device in given]
                    free = self._pass(task, given, waiters, free)
        return Plan(start=chosen, devices=devices)

    def _pass(self, task: Task, given: Sequence[Device], waiters: list[Waiter], free: Free) -> Free:
        """Note at whose cost it starts; what is left for those behind it."""
        for waiter in waiters:
            if waiter.passed < PASSES and costs(waiter.task, task, given):
                waiter.passed += 1
                self._passing.setdefault(task.key, []).append(waiter.task.key)
                if waiter.passed >= PASSES:
                    free = resources.kept_for(waiter.task.resources, free)
        return free


def costs(waiting: Task, starting: Task, given: Sequence[Device]) -> bool:
    """Whether a start takes anything that a waiting task waits for."""
    wanted, taken = waiting.resources, starting.resources
    if (wanted.cpus and taken.cpus) or (wanted.memory and taken.memory):
        return True
    return bool(wanted.gpus) and any(resources.suits(wanted, device) for device in given)
