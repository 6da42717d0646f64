"""Any sequence of calls, users' words and time keeps what must stay true of a task."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent_control_plane.events import (
    Cancel,
    Complete,
    Describe,
    Event,
    Grant,
    Progress,
    Release,
    Renew,
    Run,
    Shift,
    Start,
    Tick,
)
from agent_control_plane.lifecycle import apply, granted
from agent_control_plane.states import FINAL, HELD, Attempt, Effect, State, Task, Terms
from agent_core.api.wire import Code

TERMS = Terms(lease_sec=300.0, disconnect_grace=600.0, max_attempts=3)
MACHINES = ("m0", "m1", "m2")
rarely = st.sampled_from([False] * 5 + [True])  # ends: else most of a life is spent dead
seconds = st.sampled_from([0.0, 1.0, 60.0, 299.0, 300.0, 301.0, 600.0, 900.0, 2000.0])


class TaskLife(RuleBasedStateMachine):
    """One task, every attempt at it, and agents that call in any order, also long afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.task = Task(
            id="t", status=State.PENDING, attempt_id=None, machine_id="", max_retries=2,
            retry_count=0, retry_delay=0.0, disconnect_grace=None, lost_attempts=0,
            cancel_requested_at=None, cancel_reason="", due_at=None, ready_for="", wake_at=None,
            unmet=0, awaited=0, held_as=None, watched_until=None, needs="", priority=5,
        )  # fmt: skip
        self.attempts: dict[str, Attempt] = {}
        self.final: State | None = None

    def act(self, event: Event, attempt_id: str | None = None) -> Effect:
        named = self.task.attempt_id if attempt_id is None else attempt_id
        attempt = self.attempts.get(named) if named else None
        before = self.task
        effect = apply(self.task, attempt, event, self.now, TERMS)
        if effect.code is not Code.OK:
            assert not effect.task
            assert not effect.attempt
            return effect
        self.task = self.task._replace(
            **{k: v for k, v in effect.task.items() if k in Task._fields}
        )
        if attempt is not None:
            known = {k: v for k, v in effect.attempt.items() if k in Attempt._fields}
            self.attempts[attempt.id] = attempt._replace(**known)
        if isinstance(event, Grant):
            self.attempts[event.attempt_id] = granted(before, event, self.now, TERMS)
        return effect

    # What may happen, in any order.

    @rule(machine=st.sampled_from(MACHINES), older=st.booleans())
    def claim(self, machine: str, older: bool) -> None:
        self.act(Tick())
        before = self.task
        attempt_id = f"a{len(self.attempts)}"
        event = Grant(attempt_id=attempt_id, agent_id=machine, machine_id=machine, older=older)
        effect = self.act(event)
        assert (effect.code is Code.OK) == (before.ready_for in ("", machine))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), kind=st.sampled_from([Start, Renew, Progress, Release]))
    def call(self, data: st.DataObject, kind: Any) -> None:
        attempt = self.pick(data)
        before, effect = self.task, self.act(kind(agent_id=attempt.agent_id), attempt.id)
        if attempt.id != before.attempt_id and effect.code is Code.OK:
            assert not effect.task  # an old attempt repeats, or is refused: it changes nothing

    @precondition(lambda self: self.attempts)
    @rule(
        data=st.data(),
        status=st.sampled_from([State.COMPLETED, State.FAILED, State.CANCELLED]),
        sure=rarely,
    )
    def complete(self, data: st.DataObject, status: State, sure: bool) -> None:
        attempt = self.pick(data)
        if attempt.end is None and not sure:
            return
        event = Complete(agent_id=attempt.agent_id, status=status)
        live = attempt.end is None
        effect = self.act(event, attempt.id)
        if live:  # whatever happened before: a result whose attempt is live is taken
            assert effect.code is Code.OK
            assert effect.attempt
        again = self.act(event, attempt.id)
        if effect.code is Code.OK:
            assert again == Effect()
        else:
            assert again.code is effect.code

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), number=st.integers(1, 4), behind=st.booleans())
    def start_a_run(self, data: st.DataObject, number: int, behind: bool) -> None:
        attempt = self.pick(data)
        event = Start(agent_id=attempt.agent_id, run_no=number, behind=behind)
        if self.act(event, attempt.id).code is Code.OK:
            assert self.act(event, attempt.id) == Effect()

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), number=st.integers(1, 4), preempted=st.booleans(), later=seconds)
    def end_a_run(self, data: st.DataObject, number: int, preempted: bool, later: float) -> None:
        attempt, before = self.pick(data), self.task.retry_count
        preempted = preempted or before >= self.task.max_retries
        event = Run(
            agent_id=attempt.agent_id,
            run_no=number,
            reason="preempted" if preempted else "exited",
            next_run_at=self.now + later,
        )
        effect = self.act(event, attempt.id)
        if effect.code is Code.OK:
            assert self.act(event, attempt.id) == Effect()
        assert self.task.retry_count - before == (effect.run is not None and not preempted)
        assert (effect.run is not None) <= (attempt.end is None)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), status=st.sampled_from([State.SUSPENDED, State.RUNNING]))
    def shift(self, data: st.DataObject, status: State) -> None:
        attempt = self.pick(data)
        if self.act(Shift(agent_id=attempt.agent_id, status=status), attempt.id).code is Code.OK:
            assert self.task.status is status

    @rule(sure=rarely)
    def cancel(self, sure: bool) -> None:
        if sure:
            self.act(Cancel())

    @rule(machine=st.sampled_from(("", *MACHINES)))
    def describe(self, machine: str) -> None:
        self.act(Describe(columns={"machine_id": machine}))

    @rule(passed=seconds, noticed=st.booleans())
    def time_passes(self, passed: float, noticed: bool) -> None:
        self.now += passed
        if noticed:
            before = self.task
            self.act(Tick())
            if before.wake_at is None or self.now < before.wake_at:
                assert self.task == before  # not a moment too early
            assert self.task.wake_at is None or self.task.wake_at > self.now

    def pick(self, data: st.DataObject) -> Attempt:
        return self.attempts[data.draw(st.sampled_from(sorted(self.attempts)))]

    # What stays true.

    @invariant()
    def an_attempt_is_live_only_as_the_tasks_own(self) -> None:
        live = [attempt.id for attempt in self.attempts.values() if attempt.end is None]
        assert len(live) <= 1
        if live:
            assert live == [self.task.attempt_id]
            assert self.task.status not in FINAL
        if self.task.status not in FINAL and self.task.attempt_id is not None:
            assert live == [self.task.attempt_id]

    @invariant()
    def a_final_state_never_changes(self) -> None:
        if self.final is not None:
            assert self.task.status is self.final
        if self.task.status in FINAL:
            self.final = self.task.status

    @invariant()
    def running_means_that_its_attempt_began(self) -> None:
        if self.task.status in HELD and self.task.attempt_id:
            under_way = self.attempts[self.task.attempt_id].started_at is not None
            assert under_way == (self.task.status in {State.RUNNING, State.SUSPENDED})

    @invariant()
    def only_a_waiting_task_can_be_claimed(self) -> None:
        if self.task.ready_for is not None:
            assert self.task.status is State.PENDING
            assert self.task.ready_for == self.task.machine_id
            assert self.task.cancel_requested_at is None
        elif self.task.status is State.PENDING:
            assert self.task.wake_at == self.task.due_at is not None

    @invariant()
    def every_held_task_wakes_when_its_time_is_over(self) -> None:
        if self.task.status in HELD and self.task.attempt_id:
            attempt = self.attempts[self.task.attempt_id]
            assert self.task.wake_at in {attempt.regrant_at, attempt.lease_expires_at}
        if self.task.status in FINAL:
            assert (self.task.wake_at, self.task.ready_for) == (None, None)

    @invariant()
    def attempts_that_began_and_were_lost_are_bounded(self) -> None:
        assert self.task.lost_attempts <= TERMS.max_attempts
        assert self.task.retry_count <= self.task.max_retries


TaskLife.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTaskLife = TaskLife.TestCase
