"""Waiting tasks in their order, so that those who ask the same can be passed over together."""

import heapq
from types import TracebackType

from agent_core import Key, Resources, Task

Turn = tuple[int, float, str, str]  # priority, created_at, and the key so that no two are equal


class Order:
    """Tasks by (priority, created_at), in one heap for each kind of resources asked for.

    Who leaves is taken out of the table at once, and of its heap when its turn comes, or when most
    of the heaps has left.
    """

    def __init__(self) -> None:
        self._tasks: dict[Key, Task] = {}
        self._heaps: dict[Resources, list[Turn]] = {}
        self._turns = 0  # in all heaps

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: Key) -> bool:
        return key in self._tasks

    @property
    def size(self) -> int:
        """What is kept, those that have left included."""
        return self._turns

    def add(self, task: Task) -> None:
        known = self._tasks.get(task.key)
        self._tasks[task.key] = task
        if known and _turn(known) == _turn(task) and known.resources == task.resources:
            return
        if self._turns > 2 * len(self._tasks) + 16:
            self._tidy()
        else:
            self._push(task)

    def remove(self, key: Key) -> None:
        self._tasks.pop(key, None)

    def walk(self) -> "Walk":
        return Walk(self)

    @property
    def most_urgent(self) -> int | None:
        """The priority of who is first in line."""
        heads = [turn for kind in self.kinds() if (turn := self.first(kind)) is not None]
        return min(heads)[0] if heads else None

    def _push(self, task: Task) -> None:
        heapq.heappush(self._heaps.setdefault(task.resources, []), _turn(task))
        self._turns += 1

    def _tidy(self) -> None:
        """Keeps the heaps together at most about twice as long as the line."""
        self._heaps, self._turns = {}, 0
        for task in self._tasks.values():
            self._push(task)

    # --- for a walk

    def kinds(self) -> list[Resources]:
        return list(self._heaps)

    def first(self, kind: Resources) -> Turn | None:
        """The turn of who is first among those that ask for this; those that left are dropped."""
        heap = self._heaps[kind]
        while heap:
            task = self._task(heap[0])
            if task is not None and _turn(task) == heap[0] and task.resources == kind:
                return heap[0]
            heapq.heappop(heap)
            self._turns -= 1
        del self._heaps[kind]
        return None

    def take(self, kind: Resources) -> Task:
        """Who is first among those that ask for this, out of the heap until `put_back`."""
        heap = self._heaps[kind]
        turn = heapq.heappop(heap)
        self._turns -= 1
        while heap and heap[0] == turn:  # one that left and came back as it was stands here twice
            heapq.heappop(heap)
            self._turns -= 1
        return self._tasks[Key(turn[2], turn[3])]

    def put_back(self, task: Task) -> None:
        self._push(task)

    def _task(self, turn: Turn) -> Task | None:
        return self._tasks.get(Key(turn[2], turn[3]))


class Walk:
    """One pass along the line, from its front; the line must stay as it is meanwhile."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._taken: list[Task] = []
        self._kind: Resources | None = None  # of whom `next` gave last, unless it was passed over
        self._heads: list[tuple[Turn, int]] = []  # the first of each kind, by its number
        self._kinds = order.kinds()
        for number in range(len(self._kinds)):
            self._look(number)
        self._number = -1

    def __enter__(self) -> "Walk":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._taken:
            self._order.put_back(task)

    def next(self) -> Task | None:
        """The next one in line."""
        if self._number >= 0:
            self._look(self._number)
            self._number = -1
        if not self._heads:
            return None
        _, self._number = heapq.heappop(self._heads)
        task = self._order.take(self._kinds[self._number])
        self._taken.append(task)
        return task

    def pass_over(self) -> None:
        """Nobody who asks for the same as the last one is to come any more."""
        self._number = -1

    def _look(self, number: int) -> None:
        turn = self._order.first(self._kinds[number])
        if turn is not None:
            heapq.heappush(self._heads, (turn, number))


def _turn(task: Task) -> Turn:
    return task.priority, task.created_at, task.id, task.attempt_id
