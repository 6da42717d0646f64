"""Any stream of submits, claims, ends, cancels and time: to whom it is due, and to nobody else."""

import itertools
import json
from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import create_engine, select
from sqlalchemy.pool import StaticPool

from agent_control_plane import agents, dependencies, ledger, needs, queue, schemas, tasks
from agent_control_plane.descriptions import Description
from agent_control_plane.events import Complete, Release, Renew, Start
from agent_control_plane.queue import Asked
from agent_control_plane.states import FINAL, HELD, State, Terms
from agent_control_plane.tables import attempts, metadata
from agent_control_plane.tables import dependencies as edges
from agent_control_plane.tables import tasks as table
from agent_core.api.http import Problem
from agent_core.api.resources import read as read_resources

TERMS = Terms(lease_sec=300.0, disconnect_grace=600.0, max_attempts=3)
KINDS = [
    {},
    {"resources": {"gpus": 1}},
    {"resources": {"gpus": 2, "gpu": "a100"}},
    {"resources": {"memory": 6}},
    {"labels": {"site": "b"}},
    {"executor": "boxed", "resources": {"gpus": 1, "gpu": "t4"}},
    {"machine_id": "m1"},
]
MACHINES: list[dict[str, Any]] = [
    {"gpus": [], "memory": 10, "labels": {"site": "a"}, "executors": ["plain"], "slots": 3},
    {"gpus": ["a100", "a100", "t4"], "memory": 10, "labels": {"site": "b"}, "executors": [],
     "slots": 4},
    {"gpus": ["t4"], "memory": 5, "labels": {"site": "b"}, "executors": ["boxed"], "slots": 1},
]  # fmt: skip
# In memory, by one connection that is kept; one for all lives: its statements are compiled once.
ENGINE = create_engine("sqlite://", poolclass=StaticPool)
metadata.create_all(ENGINE)
seconds = st.sampled_from([0.0, 1.0, 200.0, 300.0, 900.0, 2000.0])
some = st.integers(min_value=0, max_value=10**6)
rarely = st.sampled_from([False] * 4 + [True])


class QueueLife(RuleBasedStateMachine):
    """The server's own work on a real database; agents that believe what they were last told."""

    engine = ENGINE

    def __init__(self) -> None:
        super().__init__()
        with self.engine.begin() as connection:
            for each in metadata.sorted_tables:
                connection.execute(each.delete())
        self.now = 1000.0
        self.numbers = itertools.count()
        self.gauge = tasks.Gauge(10**6)
        self.held: dict[str, dict[str, Any]] = {}  # by attempt, what its agent believes
        self.final: dict[str, Any] = {}
        for number, machine in enumerate(MACHINES):
            call = schemas.Register(
                agent_id=f"a{number}",
                machine_id=f"m{number}",
                max_workers=machine["slots"],
                labels=machine["labels"],
                executors=machine["executors"],
                gpus=[schemas.Gpu(name=name) for name in machine["gpus"]],
                memory=machine["memory"],
            )
            self.do(agents.register, call, self.now, TERMS, frozenset())

    def do(self, work: Any, *what: Any) -> Any:
        with self.engine.begin() as connection:
            return work(connection, *what)

    def rows(self) -> dict[str, Any]:
        query = select(table).order_by(table.c.priority, table.c.created_at, table.c.seq)
        with self.engine.connect() as connection:
            return {row.id: row for row in connection.execute(query)}

    def pick(self, number: int, among: Any) -> Any:
        found = list(among)
        return found[number % len(found)] if found else None

    # What users do

    @rule(
        made=st.lists(
            st.tuples(
                st.sampled_from(KINDS), st.integers(1, 3), st.lists(some, max_size=2), rarely
            ),
            min_size=1,
            max_size=6,
        )
    )
    def submit(self, made: list[tuple[dict[str, Any], int, list[int], bool]]) -> None:
        for kind, priority, on, alone in made:
            rows = self.rows()
            known = [each for each, row in rows.items() if State(row.status) not in FINAL]
            known = list(rows) if alone else known  # mostly what has not ended
            body = Description(
                id=f"t{next(self.numbers)}",
                command="x",
                priority=priority,
                depends_on=sorted({self.pick(each, known) for each in on} if known else ()),
                **kind,
            )
            self.do(tasks.submit, body, self.now, TERMS, self.gauge)

    @precondition(lambda self: self.rows())
    @rule(number=some, on=st.lists(some, min_size=1, max_size=2))
    def describe(self, number: int, on: list[int]) -> None:
        rows = self.rows()
        waiting = [each for each, row in rows.items() if row.status == "pending"]
        if not waiting:
            return
        task_id = self.pick(number, waiting)
        named = sorted({self.pick(each, rows) for each in on})
        body = Description(command="y", depends_on=named)
        try:
            self.do(tasks.describe, task_id, body, self.now, TERMS)
        except Problem:
            assert any(task_id in self.above(each) for each in named)
        else:
            self.held = {k: v for k, v in self.held.items() if v["id"] != task_id}

    def above(self, task_id: str) -> set[str]:
        """Everything that a task still waits for, with itself."""
        with self.engine.connect() as connection:
            rows = connection.execute(select(edges)).all()
        found, left = {task_id}, [task_id]
        while left:
            one = left.pop()
            more = {row.depends_on for row in rows if row.task_id == one} - found
            found |= more
            left += more
        return found

    @precondition(lambda self: self.rows())
    @rule(number=some, sure=st.booleans())
    def cancel(self, number: int, sure: bool) -> None:
        task_id = self.pick(number, self.rows())
        if not sure:
            return
        was = State(self.rows()[task_id].status)
        try:
            self.do(tasks.cancel, task_id, schemas.CancelCall(reason="r"), self.now, TERMS)
        except Problem:
            assert was in FINAL

    @precondition(lambda self: self.rows())
    @rule(number=some, sure=rarely)
    def remove(self, number: int, sure: bool) -> None:
        task_id = self.pick(number, self.rows())
        if not sure:
            return
        waited_for = self.do(dependencies.waiting_for, task_id)
        held = State(self.rows()[task_id].status) in HELD
        try:
            self.do(tasks.remove, task_id)
        except Problem:
            assert held or waited_for
        else:
            assert not held
            assert waited_for is None
            self.final.pop(task_id, None)
            self.held = {k: v for k, v in self.held.items() if v["id"] != task_id}

    # What agents do

    @rule(
        agent=st.integers(0, len(MACHINES) - 1),
        limit=st.sampled_from([0, 1, 2, 10, 10]),
        urgent=some,
    )
    def claim(self, agent: int, limit: int, urgent: int) -> None:
        before = self.rows()
        free = self.free(agent)
        full = limit == 0
        told = schemas.Free(
            slots=0 if full else free["slots"],
            resources=schemas.FreeResources(
                gpus=[schemas.Gpu(name=name) for name in free["gpus"]], memory=free["memory"]
            ),
            urgent_at_most=1 + urgent % 3 if full else None,
        )
        asked = Asked(f"a{agent}", f"m{agent}", limit, "", False, 2, told)
        given = self.do(queue.claim, asked, self.now, TERMS).tasks
        after = self.rows()
        assert len(given) <= (1 if full else limit)
        for task in given:
            row = after[task["id"]]
            assert before[task["id"]].status == "pending" or self.over(before[task["id"]])
            assert row.attempt_id == task["attempt_id"]
            assert row.machine_id in ("", f"m{agent}")
            assert all(
                before[each].status == "completed"
                for each in json.loads(row.depends_on)
                if each in before
            )
            assert self.fits_kind(agent, row)
            if full:
                assert row.priority <= 1 + urgent % 3
            else:
                self.take(free, row)
        self.none_was_passed_over(agent, given, free, after, full=full, limit=limit)
        for task in given:
            self.held[task["attempt_id"]] = {**task, "agent": agent}

    def over(self, row: Any) -> bool:
        """Its lease and grace are over, and a claim looks at that first."""
        return row.wake_at is not None and row.wake_at <= self.now

    def free(self, agent: int) -> dict[str, Any]:
        machine = MACHINES[agent]
        free = {"slots": machine["slots"], "gpus": list(machine["gpus"])}
        free["memory"] = machine["memory"]
        rows = self.rows()
        for task in self.held.values():
            if task["agent"] == agent and task["id"] in rows:
                self.take(free, rows[task["id"]], checked=False)
        free["slots"] = max(0, free["slots"])
        free["memory"] = max(0, free["memory"])
        return free

    def take(self, free: dict[str, Any], row: Any, *, checked: bool = True) -> None:
        """Written without the server's own arithmetic."""
        wanted = read_resources(json.loads(row.resources))
        fit = [name for name in free["gpus"] if wanted.gpu in name]
        if checked:
            assert len(fit) >= wanted.gpus
            assert free["memory"] >= wanted.memory
            assert free["slots"] > 0 or not wanted
        for name in fit[: wanted.gpus]:
            free["gpus"].remove(name)
        free["memory"] -= wanted.memory
        free["slots"] -= 1

    def fits_kind(self, agent: int, row: Any) -> bool:
        machine = MACHINES[agent]
        wanted = read_resources(json.loads(row.resources))
        return (
            row.executor in ("", *machine["executors"])
            and json.loads(row.labels).items() <= machine["labels"].items()
            and sum(wanted.gpu in name for name in machine["gpus"]) >= wanted.gpus
            and wanted.memory <= machine["memory"]
        )

    def none_was_passed_over(
        self,
        agent: int,
        given: list[Any],
        free: dict[str, Any],
        after: dict[str, Any],
        *,
        full: bool,
        limit: int,
    ) -> None:
        """Of each line the first; and nothing is left that would have fitted."""
        if full or len(given) >= limit:
            waiting = []
        else:
            waiting = [row for row in after.values() if row.ready_for in ("", f"m{agent}")]
        for row in waiting:
            wanted = read_resources(json.loads(row.resources))
            room = not wanted or (
                free["slots"] > 0
                and free["memory"] >= wanted.memory
                and sum(wanted.gpu in name for name in free["gpus"]) >= wanted.gpus
            )
            assert not (room and self.fits_kind(agent, row)), row.id
        for task in given:
            row = after[task["id"]]
            for other in after.values():
                if (other.ready_for, other.needs) == (row.machine_id, row.needs):
                    mine = (row.priority, row.created_at, row.seq)
                    assert mine < (other.priority, other.created_at, other.seq)

    @precondition(lambda self: self.held)
    @rule(
        number=some,
        verb=st.sampled_from(["start", "renew", "release", "ok", "ok", "ok", "bad", "gone"]),
    )
    def tell(self, number: int, verb: str) -> None:
        attempt_id = self.pick(number, self.held)
        task = self.held[attempt_id]
        agent = f"a{task['agent']}"
        event: Any = {
            "start": Start(agent_id=agent),
            "renew": Renew(agent_id=agent),
            "release": Release(agent_id=agent),
            "ok": Complete(agent_id=agent, status=State.COMPLETED, exit_code=0),
            "bad": Complete(agent_id=agent, status=State.FAILED, exit_code=3),
            "gone": None,
        }[verb]
        if event is not None:
            try:
                act = partial(ledger.act, attempt_id=attempt_id)
                self.do(act, task["id"], event, self.now, TERMS)
            except Problem:
                if verb == "start":
                    return
        if verb in ("release", "ok", "bad", "gone"):
            del self.held[attempt_id]

    @rule(delta=seconds)
    def time(self, delta: float) -> None:
        self.now += delta
        while self.do(ledger.sweep, self.now, TERMS) >= ledger.SWEPT_AT_ONCE:
            pass

    # What is always true

    @invariant()
    def at_most_one_attempt_holds_a_task(self) -> None:
        with self.engine.connect() as connection:
            rows = connection.execute(select(attempts).where(attempts.c.ended_at.is_(None))).all()
        assert len({row.task_id for row in rows}) == len(rows)

    @invariant()
    def what_waits_for_others_is_exactly_known(self) -> None:
        rows = self.rows()
        with self.engine.connect() as connection:
            found = {(row.task_id, row.depends_on) for row in connection.execute(select(edges))}
        expected = {
            (row.id, other)
            for row in rows.values()
            if row.status == "pending"
            for other in json.loads(row.depends_on)
            if other in rows and State(rows[other].status) not in FINAL
        }
        assert found == expected
        for row in rows.values():
            if row.status == "pending":
                waits = sum(task_id == row.id for task_id, _ in found)
                assert row.unmet == waits
                assert (row.ready_for is None) == bool(waits or row.due_at is not None)
                assert row.needs == needs.written(
                    json.loads(row.labels), read_resources(json.loads(row.resources)), row.executor
                )

    @invariant()
    def an_end_is_final_and_its_chain_of_reasons_is_right(self) -> None:
        rows = self.rows()
        for row in rows.values():
            if State(row.status) not in FINAL:
                continue
            assert self.final.setdefault(row.id, tuple(row)) == tuple(row)
            if row.error_code != 30009:
                continue
            assert (row.status, row.reason) == ("failed", "dependency")
            chains = [
                f"dependency {other} did not complete: " for other in json.loads(row.depends_on)
            ]
            (start,) = [each for each in chains if row.error.startswith(each)]
            other = rows.get(start.split()[1])
            if other is not None:
                assert other.status in ("failed", "cancelled")
                assert row.error == start + (other.error or "exit code 3")


TestQueueLife = QueueLife.TestCase
TestQueueLife.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
