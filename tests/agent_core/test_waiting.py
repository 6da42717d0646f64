"""Who waits in memory, and why: whatever comes, begins, is set aside or changes its mind."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent_core.feed import Feed
from agent_core.models import Key, Task
from agent_core.resources import NO_ROOM, Free, Resources
from agent_core.testing.clock import TurnedClock
from agent_core.waiting import Aside, Waiting
from agent_core_plugins.priority_scheduler.line import Line
from tests.agent_core.core import task


class WaitingMachine(RuleBasedStateMachine):
    """Beside two plain tables: those in line, and those set aside."""

    names = st.sampled_from("abcdef")
    wishes = st.sampled_from([Resources(), Resources(gpus=1), Resources(gpus=9)])

    @initialize()
    def begin(self) -> None:
        store: Any = None  # nothing is brought in here
        self.line = Line()
        self.waiting = Waiting(
            self.line, Feed(store, TurnedClock()), lambda task: task.resources.gpus < 9
        )
        self.in_line: dict[Key, Task] = {}
        self.aside: dict[Key, tuple[Task, Aside]] = {}

    @rule(name=names, priority=st.integers(1, 4), wish=wishes)
    def add(self, name: str, priority: int, wish: Resources) -> None:
        given = task(name, priority=priority, resources=wish)
        self.waiting.add(given)
        self._gone(given.key)
        if wish.gpus == 9:
            self.aside[given.key] = (given, Aside.MACHINE)
        else:
            self.in_line[given.key] = given

    @rule(name=names)
    def remove(self, name: str) -> None:
        self.waiting.remove(task(name).key)
        self._gone(task(name).key)

    @rule(name=names, why=st.sampled_from(list(Aside)))
    def park(self, name: str, why: Aside) -> None:
        if given := self.in_line.get(task(name).key):
            self.waiting.park(given, why)
            self._gone(given.key)
            self.aside[given.key] = (given, why)

    @rule(name=names)
    def unpark(self, name: str) -> None:
        key = task(name).key
        given, _ = self.aside.get(key, (task(name), None))
        assert self.waiting.unpark(given) == (key in self.aside)
        if key in self.aside and given.resources.gpus < 9:
            self._gone(key)
            self.in_line[key] = given
        elif key in self.aside:
            self.aside[key] = (given, Aside.MACHINE)

    def _gone(self, key: Key) -> None:
        self.in_line.pop(key, None)
        self.aside.pop(key, None)

    @invariant()
    def as_the_tables_say(self) -> None:
        assert len(self.line) == self.waiting.in_line == len(self.in_line)
        assert self.waiting.keys == self.in_line.keys() | self.aside.keys()
        asking = [each for each in self.in_line.values() if each.resources]
        assert sorted(each.id for each in self.waiting.asking) == sorted(x.id for x in asking)
        for why in Aside:
            parked = [each for each, reason in self.aside.values() if reason is why]
            assert self.waiting.parked(why) == parked or len(parked) > 1
        for priority in range(6):
            urgent = [each for each in self.in_line.values() if each.priority <= priority]
            assert self.waiting.as_urgent_as(priority) == len(urgent)
        never = len(self.waiting.parked(Aside.MACHINE))
        assert self.waiting.ready == len(self.waiting) - never

    @invariant()
    def the_scheduler_names_only_those_in_line(self) -> None:
        plan = self.waiting.plan([], Free(slots=9))
        plain = [each for each in self.in_line.values() if not each.resources]
        assert sorted(each.id for each in plan.start) == sorted(each.id for each in plain)
        assert self.waiting.plan([], NO_ROOM).start == []


TestWaitingMachine = WaitingMachine.TestCase
TestWaitingMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
