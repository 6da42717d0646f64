"""The runs of a task, in their order: those on record, and the one that each attempt stands at."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from agent_control_plane.states import End
from agent_control_plane.tables import attempts, runs

RUNS_SHOWN: Final = 1000  # of one task, the newest

_LAST = (
    select(attempts)
    .where(attempts.c.task_id == bindparam("task"))
    # What began; and an older agent's result although its start was refused.
    .where(
        attempts.c.started_at.is_not(None)
        | ((attempts.c.end == End.COMPLETED.value) & attempts.c.exit_code.is_not(None))
    )
    .order_by(attempts.c.granted_at.desc(), attempts.c.id)
    .limit(RUNS_SHOWN)
)
_COLUMNS = [column for column in runs.c if column.name not in ("stdout", "stderr")]
_EARLIER = (
    select(*_COLUMNS)
    .where(runs.c.task_id == bindparam("task"))
    .order_by(runs.c.ended_at.desc(), runs.c.run_no.desc())
    .limit(RUNS_SHOWN)
)


def of_task(connection: Connection, task_id: str) -> list[dict[str, Any]]:
    """Each with attempt_id, run_no within it, and `earlier`: whether another run followed it."""
    what = {"task": task_id}
    last: list[dict[str, Any]] = [
        {**row, "attempt_id": row["id"], "run_no": row["run_no"] or 1, "earlier": False}
        for row in connection.execute(_LAST, what).mappings()
    ]
    earlier = [{**row, "earlier": True} for row in connection.execute(_EARLIER, what).mappings()]
    return sorted(last + earlier, key=_order)[-RUNS_SHOWN:]


def _order(run: Mapping[str, Any]) -> tuple[float, int]:
    began = run["ended_at"] if run["started_at"] is None else run["started_at"]
    return began or 0.0, run["run_no"]
