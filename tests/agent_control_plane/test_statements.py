"""How SQLite finds what a claim needs: by an index, however many tasks wait, run or have ended."""

from typing import Any

import pytest
from sqlalchemy import Executable, create_engine, event

from agent_control_plane import choice, dependencies, history, ledger, queue, rows, tasks
from agent_control_plane.tables import metadata

VALUES = {
    "agent": "a",
    "request": "r",
    "task": "t",
    "attempt": "x",
    "attempts": ["x"],
    "_0": "x",
    "now": 1.0,
    "here": "m",
    "ready_for": "m",
    "needs": "",
    "ids": ["t"],
    "most": 5,
}


CASES = [
    (choice._LINES, "COVERING INDEX tasks_ready (ready_for=? AND needs>?)"),
    (choice._KEYS, "COVERING INDEX tasks_ready (ready_for=? AND needs=?)"),
    (choice._TAKE, "INDEX tasks_ready (ready_for=? AND needs=?)"),
    (dependencies._TELLABLE, "INDEX dependencies_on (depends_on=?)"),
    (dependencies._IN_CIRCLE, "INDEX sqlite_autoindex_dependencies_1 (task_id=?)"),
    (dependencies._WAITED_FOR, "INDEX dependencies_on (depends_on=?)"),
    (queue._SAME_CLAIM, "INDEX attempts_agent (agent_id=? AND ended_at=?)"),
    (queue._COUNT_HELD, "INDEX attempts_agent (agent_id=? AND ended_at=?)"),
    (ledger._DUE, "INDEX tasks_wake"),
    (ledger._BY_ID, "INDEX sqlite_autoindex_tasks_1"),
    (ledger._BY_ATTEMPT, "INDEX sqlite_autoindex_tasks_1"),
    (history._LAST, "INDEX attempts_task"),
    (history._EARLIER, "INDEX ix_runs_task_id"),
    (rows.attempts_with_tasks(1), "INDEX sqlite_autoindex_attempts_1"),
    (tasks._COUNT_OPEN, "COVERING INDEX tasks_status"),
]


@pytest.mark.parametrize(("statement", "index"), CASES)
def test_no_statement_of_every_call_walks_through_a_table(
    statement: Executable, index: str
) -> None:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def explain(_c: Any, _cursor: Any, text: str, values: Any, *_: Any) -> tuple[str, Any]:
        return f"EXPLAIN QUERY PLAN {text}", values

    with engine.connect() as connection:
        plan = [row[3] for row in connection.execute(statement, VALUES)]
    engine.dispose()
    assert any(index in step for step in plan), plan
    assert not any(step.startswith(("SCAN tasks", "SCAN attempts")) for step in plan), plan
