"""The plugin that says who is next: the most urgent first, and of those the one that came first."""

import heapq
from collections.abc import Sequence

from agent_core import Free, Key, Plan, PluginContext, Scheduler, Section, Task, hookimpl

Turn = tuple[int, float, str, str]  # priority, created_at, and the key so that no two are equal


class PrioritySchedulerSettings(Section):
    """Nothing to set."""


class PriorityScheduler:
    """Makes the waiting line; `Line` keeps it."""

    Settings = PrioritySchedulerSettings

    def __init__(self, settings: PrioritySchedulerSettings, context: PluginContext) -> None:
        pass

    @hookimpl
    def schedule(self) -> Scheduler:
        return Line()


class Line:
    """Tasks that wait for a slot, by (priority, created_at).

    A heap of turns beside a table of tasks: who leaves is taken out of the table at once, and of
    the heap when its turn comes, or when most of the heap has left.
    """

    def __init__(self) -> None:
        self._tasks: dict[Key, Task] = {}
        self._heap: list[Turn] = []

    def add(self, task: Task) -> None:
        known = self._tasks.get(task.key)
        self._tasks[task.key] = task
        if known is None or _turn(known) != _turn(task):
            self._tidy()
            heapq.heappush(self._heap, _turn(task))

    def remove(self, key: Key) -> None:
        self._tasks.pop(key, None)

    def next(self, running: Sequence[Task], free: Free) -> Plan:
        turns: list[Turn] = []
        while self._heap and len(turns) < free.slots:
            turn = heapq.heappop(self._heap)
            # One that left and came back with the same turn stands here twice.
            if self._waits(turn) and (not turns or turns[-1] != turn):
                turns.append(turn)
        for turn in turns:
            heapq.heappush(self._heap, turn)
        return Plan(start=[self._tasks[Key(turn[2], turn[3])] for turn in turns])

    def __len__(self) -> int:
        return len(self._tasks)

    def _waits(self, turn: Turn) -> bool:
        task = self._tasks.get(Key(turn[2], turn[3]))
        return task is not None and _turn(task) == turn

    def _tidy(self) -> None:
        """Keeps the heap at most about twice as long as the line."""
        if len(self._heap) > 2 * len(self._tasks) + 16:
            self._heap = [_turn(task) for task in self._tasks.values()]
            heapq.heapify(self._heap)


def _turn(task: Task) -> Turn:
    return task.priority, task.created_at, task.id, task.attempt_id
