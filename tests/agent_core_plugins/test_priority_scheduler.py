"""The most urgent goes first, and of those the one that came first; whatever comes in between."""

from dataclasses import replace

import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent_core import Free, Key, PluginContext, Scheduler, Task
from agent_core.testing.clock import TurnedClock
from agent_core.testing.scheduler import SchedulerContract
from agent_core.testing.store import make_task
from agent_core_plugins.priority_scheduler import PriorityScheduler
from agent_core_plugins.priority_scheduler.line import Line


class TestPriorityScheduler(SchedulerContract):
    def make_scheduler(self) -> Scheduler:
        context = PluginContext(
            agent_id="agent-1",
            machine_id="machine-1",
            state_dir=None,  # type: ignore[arg-type]
            runtime_dir=None,  # type: ignore[arg-type]
            max_workers=2,
            clock=TurnedClock(),
            log=structlog.get_logger("priority_scheduler"),
        )
        return PriorityScheduler(PriorityScheduler.Settings(), context).schedule()


def test_the_most_urgent_goes_first_then_the_oldest_then_by_key():
    line = Line()
    tasks = [
        make_task(id="b", priority=1, created_at=5.0, attempt_id="2"),
        make_task(id="b", priority=1, created_at=5.0, attempt_id="1"),
        make_task(id="z", priority=1, created_at=4.0),
        make_task(id="a", priority=1, created_at=5.0),
        make_task(id="0", priority=10, created_at=0.0),
        make_task(id="9", priority=2, created_at=9.0),
    ]
    for task in tasks:
        line.add(task)
    order = [(task.id, task.attempt_id) for task in line.next([], Free(slots=10)).start]
    assert order == [
        ("z", "attempt-1"),
        ("a", "attempt-1"),
        ("b", "1"),
        ("b", "2"),
        ("9", "attempt-1"),
        ("0", "attempt-1"),
    ]


def test_what_has_left_takes_no_room_for_long():
    line = Line()
    staying = make_task(priority=10)
    line.add(staying)
    for _ in range(10_000):
        passing = make_task(priority=10, created_at=staying.created_at + 1)
        line.add(passing)
        line.remove(passing.key)
    assert line._order.size < 50
    assert list(line.next([], Free(slots=5)).start) == [staying]


class LineMachine(RuleBasedStateMachine):
    """Beside a list that is sorted anew for every question."""

    keys = st.builds(Key, st.sampled_from("abcdef"), st.sampled_from(["1", "2"]))

    @initialize()
    def begin(self) -> None:
        self.line = Line()
        self.naive: dict[Key, Task] = {}

    @rule(key=keys, priority=st.integers(1, 3), created=st.sampled_from([0.0, 1.5, 2.0]))
    def add(self, key: Key, priority: int, created: float) -> None:
        task = make_task(
            id=key.task_id, attempt_id=key.attempt_id, priority=priority, created_at=created
        )
        self.line.add(task)
        self.naive[key] = task

    @rule(key=keys, retries=st.integers(1, 5))
    def add_again_as_it_stands(self, key: Key, retries: int) -> None:
        if key in self.naive:
            self.naive[key] = replace(self.naive[key], retry_count=retries)
            self.line.add(self.naive[key])

    @rule(key=keys)
    def remove(self, key: Key) -> None:
        self.line.remove(key)
        self.naive.pop(key, None)

    @rule(free=st.integers(0, 15))
    def ask(self, free: int) -> None:
        assert list(self.line.next([], Free(slots=free)).start) == self._order()[:free]

    @rule(free=st.integers(1, 3))
    def start(self, free: int) -> None:
        plan = self.line.next([], Free(slots=free)).start
        assert list(plan) == self._order()[:free]
        for task in plan:
            self.line.remove(task.key)
            del self.naive[task.key]

    @invariant()
    def as_many_wait(self) -> None:
        assert len(self.line) == len(self.naive)
        assert self.line._order.size <= 2 * len(self.naive) + 18 + 10

    def _order(self) -> list[Task]:
        tasks = self.naive.values()
        return sorted(tasks, key=lambda task: (task.priority, task.created_at, task.key))


TestLineMachine = LineMachine.TestCase
TestLineMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
