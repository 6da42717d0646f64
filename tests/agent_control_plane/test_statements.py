"""How SQLite finds what a claim needs: by an index, however many tasks wait, run or have ended."""

from typing import Any

import pytest
from sqlalchemy import Executable, create_engine, event

from agent_control_plane import ledger, queue, tasks
from agent_control_plane.tables import metadata

VALUES = {
    "agent": "a",
    "request": "r",
    "task": "t",
    "attempt": "x",
    "now": 1.0,
    "any": "",
    "mine": "m",
    "most": 5,
}


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (queue._CANDIDATES, "COVERING INDEX tasks_ready"),
        (queue._SAME_CLAIM, "INDEX attempts_agent (agent_id=? AND ended_at=?)"),
        (queue._COUNT_HELD, "INDEX attempts_agent (agent_id=? AND ended_at=?)"),
        (ledger._DUE, "INDEX tasks_wake"),
        (ledger._BY_ID, "INDEX sqlite_autoindex_tasks_1"),
        (ledger._BY_ATTEMPT, "INDEX sqlite_autoindex_tasks_1"),
        (tasks._RUNS, "INDEX attempts_task"),
        (tasks._COUNT_OPEN, "COVERING INDEX tasks_status"),
    ],
)
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
