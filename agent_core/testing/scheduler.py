"""The contract of a scheduler, as tests: subclass SchedulerContract and say how yours is made.

    class TestMine(SchedulerContract):
        def make_scheduler(self) -> Scheduler:
            return MyScheduler(MyScheduler.Settings(), context).schedule()

Nothing here says who is next: that is for a scheduler to decide. It says what core relies on.
"""

from dataclasses import replace

import pytest

from agent_core.api.resources import Free
from agent_core.lifecycle import Status
from agent_core.models import Key, Running
from agent_core.protocols import Scheduler
from agent_core.testing.making import make_task


class SchedulerContract:
    """What the worker relies on."""

    def make_scheduler(self) -> Scheduler:
        """One in which nothing waits."""
        raise NotImplementedError

    @pytest.fixture
    def scheduler(self) -> Scheduler:
        return self.make_scheduler()

    def test_nothing_waits_at_first(self, scheduler: Scheduler) -> None:
        assert len(scheduler) == 0
        assert list(scheduler.next([], Free(slots=5)).start) == []

    def test_at_most_the_free_slots_are_planned(self, scheduler: Scheduler) -> None:
        tasks = [make_task(priority=1 + number % 10) for number in range(50)]
        for task in tasks:
            scheduler.add(task)
        for free in (0, 1, 3, 49):
            assert len(scheduler.next([], Free(slots=free)).start) <= free

    def test_a_free_slot_is_used_while_something_waits(self, scheduler: Scheduler) -> None:
        waiting = {task.key for task in (make_task(priority=number) for number in range(1, 11))}
        for key in waiting:
            scheduler.add(make_task(id=key.task_id, attempt_id=key.attempt_id))
        started: list[Key] = []
        while plan := scheduler.next([], Free(slots=3)).start:
            started += [task.key for task in plan]
            for task in plan:
                scheduler.remove(task.key)
        assert sorted(started) == sorted(waiting)
        assert len(scheduler) == 0

    def test_a_planned_task_stays_until_it_is_removed(self, scheduler: Scheduler) -> None:
        task = make_task()
        scheduler.add(task)
        for _ in range(3):
            assert list(scheduler.next([], Free(slots=2)).start) == [task]
            assert len(scheduler) == 1
        scheduler.remove(task.key)
        assert list(scheduler.next([], Free(slots=2)).start) == []
        assert len(scheduler) == 0

    def test_no_task_is_planned_twice_at_once(self, scheduler: Scheduler) -> None:
        tasks = [make_task() for _ in range(10)]
        for _ in range(3):
            for task in tasks:
                scheduler.add(task)
                scheduler.remove(task.key)
                scheduler.add(task)
        planned = [task.key for task in scheduler.next([], Free(slots=100)).start]
        assert sorted(planned) == sorted(task.key for task in tasks)
        assert len(scheduler) == 10

    def test_a_key_that_waits_already_is_replaced(self, scheduler: Scheduler) -> None:
        task = make_task(priority=9)
        scheduler.add(task)
        changed = replace(task, priority=1, retry_count=1)
        scheduler.add(changed)
        assert len(scheduler) == 1
        assert list(scheduler.next([], Free(slots=2)).start) == [changed]

    def test_an_unknown_key_may_be_removed(self, scheduler: Scheduler) -> None:
        task = make_task()
        scheduler.add(task)
        scheduler.remove(Key("unknown", ""))
        scheduler.remove(replace(task, attempt_id="another").key)
        assert len(scheduler) == 1

    def test_what_runs_is_none_of_the_waiting(self, scheduler: Scheduler) -> None:
        running = [Running(make_task(status=Status.RUNNING)) for _ in range(3)]
        waiting = make_task()
        scheduler.add(waiting)
        assert list(scheduler.next(running, Free(slots=1)).start) == [waiting]
        assert len(scheduler) == 1
