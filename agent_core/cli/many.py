"""Many requests at once, a bounded number at a time, their answers in order."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

WIDTH: Final = 8  # requests at once
AHEAD: Final = 32  # begun or waiting before the oldest one's answer was taken
LEAVE: Final = 0.2  # seconds for each thread that is in the middle of a request


class _Job(Generic[T, R]):
    def __init__(self, item: T) -> None:
        self.item = item
        self.answer: R | None = None
        self.error: Exception | None = None
        self.done = threading.Event()

    def work(self, do: Callable[[T], R]) -> None:
        try:
            self.answer = do(self.item)
        except Exception as error:  # whoever takes the answer raises it
            self.error = error
        self.done.set()


def in_order(items: Iterable[T], do: Callable[[T], R]) -> Iterator[R]:
    """What `do` answers for each item, in the items' order; the first failure is raised.

    Items behind one that failed may have been done, too: up to `AHEAD`.
    """
    jobs: queue.SimpleQueue[_Job[T, R] | None] = queue.SimpleQueue()
    stop = threading.Event()
    threads = [
        # Nobody waits for one that hangs in a request: Ctrl-C is quick.
        threading.Thread(target=_work, args=(jobs, do, stop), name=f"request {n}", daemon=True)
        for n in range(WIDTH)
    ]
    for thread in threads:
        thread.start()
    waiting: deque[_Job[T, R]] = deque()
    rest = iter(items)
    try:
        while True:
            for item in islice(rest, AHEAD - len(waiting)):
                waiting.append(_Job(item))
                jobs.put(waiting[-1])
            if not waiting:
                return
            job = waiting.popleft()
            job.done.wait()
            if job.error is not None:
                raise job.error
            yield job.answer  # type: ignore[misc]  # done, and no error
    finally:
        stop.set()
        for _ in threads:
            jobs.put(None)
        for thread in threads:
            thread.join(LEAVE)


def _work(
    jobs: "queue.SimpleQueue[_Job[T, R] | None]", do: Callable[[T], R], stop: threading.Event
) -> None:
    while (job := jobs.get()) is not None:
        if not stop.is_set():
            job.work(do)
