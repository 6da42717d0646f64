"""Every move that may be made, and no other; what is final stays; one table says it all."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent_core.api.wire import Answer
from agent_core.errors import Conflict
from agent_core.lifecycle import (
    FINAL,
    HELD,
    TRANSITIONS,
    EventKind,
    IllegalMove,
    Move,
    Status,
    Transition,
    advance,
)
from agent_core.models import Event, Key, Receipt, Task
from agent_core.moves import Moves
from agent_core.testing.clock import TurnedClock
from agent_core.testing.store import make_outcome, make_task
from agent_core_plugins.sqlite_store.opening import open_database
from agent_core_plugins.sqlite_store.store import SqliteTasks

# Written out by hand, one line a move that may be made: what is not here must be refused.
LEGAL = """
    pending    refuse     failed     complete
    pending    assign     assigned   -
    pending    cancel     cancelled  complete
    pending    release    cancelled  release
    assigned   unassign   pending    -
    assigned   postpone   pending    -
    assigned   never_ran  failed     complete
    assigned   begin      running    start
    assigned   cancel     cancelled  complete
    running    complete   completed  complete
    running    fail       failed     complete
    running    retry      pending    run
    running    cancel     cancelled  complete
    running    preempt    preempted  run
    running    suspend    suspended  state
    suspended  complete   completed  complete
    suspended  fail       failed     complete
    suspended  retry      pending    run
    suspended  cancel     cancelled  complete
    suspended  preempt    preempted  run
    suspended  resume     running    state
    preempted  return     pending    -
    preempted  cancel     cancelled  complete
"""
TABLE = {
    (Status(status), Move(move)): (Status(target), None if kind == "-" else EventKind(kind))
    for status, move, target, kind in (line.split() for line in LEGAL.split("\n") if line.strip())
}


@pytest.mark.parametrize("move", list(Move))
@pytest.mark.parametrize("status", list(Status))
def test_a_move_is_made_as_the_table_says_or_refused(status, move):
    if (status, move) not in TABLE:
        with pytest.raises(IllegalMove, match=f"that is {status.value} cannot {move.value}"):
            advance(status, move)
        return
    transition = advance(status, move)
    assert (transition.target, transition.event) == TABLE[status, move]
    assert status in transition.sources


def test_there_are_eight_states_and_three_of_them_are_final():
    waiting, live = {"pending", "preempted"}, {"assigned", "running", "suspended"}
    final = {"completed", "failed", "cancelled"}
    assert {status.value for status in Status} == waiting | live | final
    assert {status.value for status in FINAL} == final
    assert {status.value for status in HELD} == waiting | live
    assert not HELD & FINAL


def test_every_move_has_its_row_and_every_held_task_can_be_brought_to_an_end():
    assert TRANSITIONS.keys() == set(Move)
    assert all(isinstance(row, Transition) for row in TRANSITIONS.values())
    for status in HELD:
        reached = {status}
        while more := {TABLE[pair][0] for pair in TABLE if pair[0] in reached} - reached:
            reached |= more
        assert reached >= FINAL
        assert advance(status, Move.CANCEL).target is Status.CANCELLED


def test_who_gave_a_task_hears_of_its_end_exactly_once():
    for row in TRANSITIONS.values():
        ends = row.event in {EventKind.COMPLETE, EventKind.RELEASE}
        assert (row.target in FINAL) == ends


def test_an_illegal_move_is_a_value_error_and_changes_no_row():
    before = dict(TRANSITIONS)
    with pytest.raises(ValueError):
        advance(Status.COMPLETED, Move.RETRY)
    assert before == TRANSITIONS


class Life(RuleBasedStateMachine):
    """Tasks on a real store, moved at random, also by two who believe the same, with restarts.

    The model is a dictionary of what each task must be by now, and the events it must have told.
    """

    names = st.sampled_from(["a", "b", "c"])

    @initialize()
    def begin(self) -> None:
        memory = Path("/dev/shm")
        self.directory = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.loop = asyncio.new_event_loop()
        self.clock = TurnedClock()
        self.model: dict[Key, Task] = {}
        self.ended: dict[Key, Task] = {}
        self.untold: list[Event] = []
        self.runs: dict[Key, list[int]] = {}
        self.stored = 0
        self.told = 0
        self._open()

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.run_until_complete(self.store.close())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.directory)

    def _open(self) -> None:
        self.store = SqliteTasks(open_database(self.directory / "agent.db"))
        self.moves = Moves(self.store, self.clock, self._count)

    def _count(self) -> None:
        self.stored += 1

    def _do(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    @rule(name=names, attempt=st.sampled_from(["1", "2"]), local=st.booleans())
    def claim(self, name: str, attempt: str, local: bool) -> None:
        task = make_task(id=name, attempt_id=attempt, source="" if local else "server")
        fresh = self._do(self.store.add([task], {}))
        assert bool(fresh) == (task.key not in self.model)
        self.model.setdefault(task.key, task)

    @rule(name=names, attempt=st.sampled_from(["1", "2"]), move=st.sampled_from(list(Move)))
    def move(self, name: str, attempt: str, move: Move) -> None:
        task = self.model.get(Key(name, attempt))
        if task is None:
            return
        legal = TABLE.get((task.status, move))
        if legal is None:
            with pytest.raises(Conflict):
                self._do(self.moves.make(task, move, **self._given(task, move)))
        else:
            after = self._do(self.moves.make(task, move, **self._given(task, move)))
            self._moved(task, after, *legal)

    @rule(name=names, moves=st.lists(st.sampled_from(list(Move)), min_size=2, max_size=4))
    def move_at_once(self, name: str, moves: list[Move]) -> None:
        """Several who all read the same: the first legal one wins, the others hear of it."""
        task = self.model.get(Key(name, "1"))
        if task is None:
            return

        async def race():
            made = [self.moves.make(task, move, **self._given(task, move)) for move in moves]
            return await asyncio.gather(*made, return_exceptions=True)

        legal = [number for number, move in enumerate(moves) if (task.status, move) in TABLE]
        results = self._do(race())
        won = [number for number, result in enumerate(results) if isinstance(result, Task)]
        assert won[:1] == legal[:1]
        for number in won:
            before = self.model[task.key]
            self._moved(before, results[number], *TABLE[task.status, moves[number]])
        for number, result in enumerate(results):
            assert number in won or isinstance(result, Conflict)
        # A second one wins only if the first left the task as it was, by status and start id.
        assert len(won) <= 1 or results[won[0]].status is task.status

    @precondition(lambda self: self.untold)
    @rule(answer=st.sampled_from(list(Answer)), count=st.integers(1, 3))
    def report(self, answer: Answer, count: int) -> None:
        events = self._do(self.store.outbox(limit=count))
        assert [event.kind for event in events] == [each.kind for each in self.untold[:count]]
        self._do(self.store.settle([Receipt(seq=each.seq, answer=answer) for each in events]))
        if answer is not Answer.RETRY:
            del self.untold[: len(events)]
            self.told += len(events)

    @rule()
    def restart(self) -> None:
        stream = self.store.stream
        self._do(self.store.close())
        self._open()
        assert self.store.stream == stream

    @rule()
    def whoever_is_late_changes_nothing(self) -> None:
        for before in self.ended.values():
            for move in Move:
                with pytest.raises(Conflict):
                    self._do(self.moves.make(before, move, **self._given(before, move)))

    @invariant()
    def the_store_agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        for key, task in self.model.items():
            kept = self._do(self.store.get(key))
            assert kept == task
            if key in self.ended:
                assert kept.status in FINAL
            runs = self._do(self.store.runs(key))
            assert [run.run_no for run in runs] == self.runs.get(key, [])
        events = self._do(self.store.outbox(limit=1000))
        assert [(each.kind, each.key) for each in events] == [
            (each.kind, each.key) for each in self.untold
        ]
        assert self.stored == self.told + len(self.untold)

    def _given(self, task: Task, move: Move) -> dict:
        """What worker and runner hand over with such a move."""
        given: dict = {}
        if move in {
            Move.REFUSE,
            Move.NEVER_RAN,
            Move.COMPLETE,
            Move.FAIL,
            Move.RETRY,
            Move.CANCEL,
            Move.RELEASE,
            Move.PREEMPT,
        }:
            given["outcome"] = make_outcome(f"{move.value} {task.id}".encode())
        if move is Move.ASSIGN:
            given["start_id"] = f"start-{self.clock.boottime()}"
        if move is Move.BEGIN:
            given |= {"run_no": task.run_no + 1, "handle": {"pid": 1}, "executor": "some"}
        if move is Move.RETRY:
            given |= {"retry_count": task.retry_count + 1, "due_at": self.clock.wall()}
        return given

    def _moved(self, before: Task, after: Task, target: Status, kind: EventKind | None) -> None:
        assert before.key not in self.ended
        assert after.status is target
        assert after.key == before.key
        self.model[after.key] = after
        self._do(self.clock.advance(1.0))
        if kind is EventKind.RUN:
            self.runs.setdefault(after.key, []).append(before.run_no)
        if target in FINAL:
            self.ended[after.key] = before
        if kind is not None and before.source:
            self.untold.append(
                Event(kind=kind, key=after.key, source="server", run_no=after.run_no, at=0.0)
            )


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
