"""The book of tasks and attempts: load, apply, save; and the sweep of what time has changed."""

import math
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from agent_control_plane import dependencies
from agent_control_plane.db import several_write
from agent_control_plane.events import Event, Tick
from agent_control_plane.lifecycle import apply
from agent_control_plane.prepared import Query, Row
from agent_control_plane.rows import (
    ATTEMPT_COLUMNS,
    TASK_COLUMNS,
    Change,
    columns_with,
    read_attempt,
    read_task,
    write,
)
from agent_control_plane.states import FINAL, Attempt, Effect, Task, Terms
from agent_control_plane.tables import attempts, tasks
from agent_core.api.http import Problem
from agent_core.api.wire import Code

SWEPT_AT_ONCE: Final = 100  # tasks in one transaction

_BY_ATTEMPT = (
    select(*TASK_COLUMNS, *ATTEMPT_COLUMNS)
    .select_from(
        tasks.outerjoin(
            attempts,
            (attempts.c.id == bindparam("attempt")) & (attempts.c.task_id == tasks.c.id),
        )
    )
    .where(tasks.c.id == bindparam("task"))
    .with_for_update(of=tasks)
)
_LOCK = select(tasks.c.seq).where(tasks.c.id == bindparam("task")).with_for_update()
_BY_ID = columns_with().where(tasks.c.id == bindparam("task"))
_DUE_NOW = (
    select(tasks.c.seq)
    .where(tasks.c.wake_at <= bindparam("now"))
    .order_by(tasks.c.wake_at)
    .limit(SWEPT_AT_ONCE)
)
_LOCK_DUE = _DUE_NOW.with_for_update(skip_locked=True)
_DUE = columns_with().where(tasks.c.seq.in_(_DUE_NOW))
_find_due = Query(_DUE)
_THESE_DUE = columns_with().where(tasks.c.seq.in_(bindparam("seqs", expanding=True)))
_NEXT_DUE = select(func.min(tasks.c.wake_at)).where(tasks.c.wake_at.is_not(None))


def act(
    connection: Connection,
    task_id: str,
    event: Event,
    now: float,
    terms: Terms,
    *,
    attempt_id: str | None = None,
) -> tuple[Task, Effect]:
    """Apply an event and save what it changes. Raises Problem for a refusal, which saves nothing.

    Without an attempt_id the event is about the task's own attempt, if it has one.
    """
    task, attempt = load(connection, task_id, attempt_id)
    effect = apply(task, attempt, event, now, terms)
    if effect.code is not Code.OK:
        raise Problem(effect.code, effect.message)
    save(connection, (task, attempt, effect))
    return task, effect


def load(
    connection: Connection, task_id: str, attempt_id: str | None = None
) -> tuple[Task, Attempt | None]:
    """A task, and the attempt named or its own. Raises Problem if there is no such task."""
    if several_write(connection):  # or the attempt read with it may be older than the lock
        connection.execute(_LOCK, {"task": task_id})
    if attempt_id is None:
        row = connection.execute(_BY_ID, {"task": task_id}).first()
    else:
        row = connection.execute(_BY_ATTEMPT, {"task": task_id, "attempt": attempt_id}).first()
    if row is None:
        raise no_such_task(task_id)
    return read_task(row), read_attempt(row)


def no_such_task(task_id: str) -> Problem:
    return Problem(Code.NO_SUCH_TASK, f"there is no task {task_id[:80]}")


def save(connection: Connection, *changes: Change) -> None:
    """The columns that the effects name; and what the end of a task means for those that wait."""
    write(connection, *changes)
    ended = [
        (task, effect.task["ended_at"])
        for task, _, effect in changes
        if (task.unmet or task.awaited) and effect.task.get("status") in FINAL
    ]
    if ended:
        now = max(moment for _, moment in ended)
        dependencies.ended(connection, [task for task, _ in ended], now)


def next_due(connection: Connection) -> float:
    """When time alone changes a task next; infinity if never."""
    found: float | None = connection.execute(_NEXT_DUE).scalar()
    return math.inf if found is None else found


def sweep(connection: Connection, now: float, terms: Terms) -> int:
    """Give time its due: leases over, retries due, ends that not all who wait have heard of.

    Returns how many tasks it looked at.
    """
    changes: list[Change] = []
    untold: list[str] = []
    for row in _due(connection, now):
        task, attempt = read_task(row), read_attempt(row)
        if task.status in FINAL:
            untold.append(task.id)
        else:
            changes.append((task, attempt, apply(task, attempt, Tick(), now, terms)))
    save(connection, *changes)
    told = dependencies.tell(connection, untold, now) if untold else 0
    return max(len(changes) + len(untold), SWEPT_AT_ONCE if told >= dependencies.PIECE else 0)


def _due(connection: Connection, now: float) -> Sequence[Row]:
    """Locked, without those that another server looks at already."""
    if not several_write(connection):
        return _find_due.rows(connection, {"now": now})
    seqs = connection.execute(_LOCK_DUE, {"now": now}).scalars().all()
    return connection.execute(_THESE_DUE, {"seqs": seqs}).all() if seqs else ()
