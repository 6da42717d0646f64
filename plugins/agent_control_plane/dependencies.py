"""What waits for what: found at submit, told in bounded pieces when something has ended.

A row of `dependencies` is a task that waits for another. It goes when either has ended, so what
waits costs nothing: no slot, and no look at it until then.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, insert, literal, select, update

from agent_control_plane import messages
from agent_control_plane.events import Settle
from agent_control_plane.lifecycle import apply
from agent_control_plane.rows import TASK_COLUMNS, read_task, write
from agent_control_plane.states import FINAL, Effect, State, Task, Terms
from agent_control_plane.tables import dependencies, tasks
from agent_core.api.http import Problem
from agent_core.api.wire import Code

PIECE: Final = 200  # waiting tasks that are told in one transaction; the sweep goes on
LINKS: Final = 40  # of a chain of ends, in one transaction: each costs statements of its own
_WORDS: Final = 1000  # characters of a chain of reasons: its beginning and its end
_NO_TERMS: Final = Terms(lease_sec=0, disconnect_grace=0, max_attempts=0)  # nothing has a lease
_CYCLES: Final = 0x5EED  # an advisory lock: two changes must not close one cycle together

_NAMED = (
    select(tasks.c.id, tasks.c.status, tasks.c.awaited, tasks.c.error, tasks.c.exit_code)
    .where(tasks.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(tasks.c.id)
)
_LOCKED = _NAMED.with_for_update()
_TELLABLE = (
    select(*TASK_COLUMNS, dependencies.c.depends_on)
    .select_from(dependencies.join(tasks, tasks.c.id == dependencies.c.task_id))
    .where(dependencies.c.depends_on.in_(bindparam("ids", expanding=True)))
    .order_by(dependencies.c.depends_on, dependencies.c.task_id)
    .limit(bindparam("most"))
    .with_for_update(of=[tasks, dependencies])
)
_AWAIT = update(tasks).where(tasks.c.id.in_(bindparam("ids", expanding=True))).values(awaited=1)
_TOLD = (
    update(tasks)
    .where(tasks.c.id.in_(bindparam("ids", expanding=True)))
    .values(awaited=0, wake_at=None)
)
_MET = delete(dependencies).where(
    (dependencies.c.task_id == bindparam("_task")) & (dependencies.c.depends_on == bindparam("_on"))
)
_GONE = delete(dependencies).where(dependencies.c.task_id.in_(bindparam("ids", expanding=True)))
_WAITED_FOR = select(dependencies.c.task_id).where(dependencies.c.depends_on == bindparam("task"))


def _above(start: str) -> Any:
    """Everything that the tasks named wait for, directly or not."""
    walk = (
        select(dependencies.c.depends_on)
        .where(dependencies.c.task_id.in_(bindparam(start, expanding=True)))
        .cte("above", recursive=True)
    )
    return walk.union(
        select(dependencies.c.depends_on).join(walk, dependencies.c.task_id == walk.c.depends_on)
    )


_ABOVE = _above("ids")
_IN_CIRCLE = select(literal(1)).where(_ABOVE.c.depends_on == bindparam("task")).limit(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """What a task has to wait for."""

    on: Sequence[str] = ()  # tasks that have not ended
    failed: str = ""  # what one that ended without success makes of it; "" = none did

    @property
    def unmet(self) -> int:
        return 1 if self.failed else len(self.on)


def look_up(connection: Connection, named: Sequence[str], *, gone: bool = False) -> Wait:
    """What of the tasks named is still to come. They are locked, so that none ends meanwhile.

    Raises Problem for an unknown one, unless `gone` ones count as completed.
    """
    if not named:
        return Wait()
    rows = {row.id: row for row in connection.execute(_LOCKED, {"ids": sorted(named)})}
    for place, task_id in enumerate(named):
        if task_id not in rows and not gone:
            raise Problem(
                Code.INVALID,
                f"depends_on.{place}: there is no task {task_id[:80]}; submit that one first",
            )
    known = [rows[task_id] for task_id in named if task_id in rows]
    for row in known:
        if row.status in FINAL and row.status != State.COMPLETED:
            return Wait(failed=_words(row))
    return Wait(on=[row.id for row in known if row.status not in FINAL])


def enter(connection: Connection, task_id: str, wait: Wait, now: float) -> None:
    """Note what a task that stands in its table waits for, or end it at once."""
    if wait.failed:
        row = connection.execute(select(*TASK_COLUMNS).where(tasks.c.id == task_id)).one()
        task = read_task(row)
        event = Settle(completed=False, words=wait.failed)
        effect = apply(task, None, event, now, _NO_TERMS)
        write(connection, (task, None, effect))
        if task.awaited:
            tell(connection, [task_id], now)
    elif wait.on:
        made = [{"task_id": task_id, "depends_on": other} for other in wait.on]
        connection.execute(insert(dependencies), made)
        connection.execute(_AWAIT, {"ids": list(wait.on)})


def refuse_cycle(connection: Connection, task_id: str, wait: Wait) -> None:
    """Raises Problem if something that the task would wait for waits for it."""
    if not wait.on:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_CYCLES)))
    if task_id in wait.on:
        raise Problem(Code.INVALID, "depends_on: a task cannot depend on itself")
    where = {"ids": list(wait.on), "task": task_id}
    if connection.execute(_IN_CIRCLE, where).first() is not None:
        raise Problem(
            Code.INVALID,
            f"depends_on: a cycle: one of them waits, directly or not, for {task_id[:80]} itself",
        )


def forget(connection: Connection, task_id: str) -> None:
    """The task waits for nothing any more."""
    connection.execute(_GONE, {"ids": [task_id]})


def waiting_for(connection: Connection, task_id: str) -> str | None:
    """One of those that wait for it."""
    found: str | None = connection.execute(_WAITED_FOR.limit(1), {"task": task_id}).scalar()
    return found


def ended(connection: Connection, final: Collection[Task], now: float) -> None:
    """What the end of these tasks, as they were before it, means for those that wait."""
    if waited := [task.id for task in final if task.unmet]:
        connection.execute(_GONE, {"ids": waited})
    if awaited := [task.id for task in final if task.awaited]:
        tell(connection, awaited, now)


def tell(connection: Connection, ids: Sequence[str], now: float, most: int = PIECE) -> int:
    """Tell those that wait for these final tasks, and those that wait for what ends by it.

    Returns how many were told. Who is left is due at once: a sweep goes on with them.
    """
    left = most
    for _ in range(LINKS):
        if not ids:
            return most - left
        why = {row.id: row for row in connection.execute(_NAMED, {"ids": list(ids)})}
        rows = connection.execute(_TELLABLE, {"ids": list(ids), "most": left}).all()
        ended_too = _settle(connection, rows, why, now)
        if len(rows) == left:  # perhaps some are left
            break
        left -= len(rows)
        connection.execute(_TOLD, {"ids": list(ids)})
        ids = ended_too
    if ids:
        messages.say(connection, messages.Due(now))
        return most
    return most - left


def _settle(
    connection: Connection, rows: Sequence[Any], why: Mapping[str, Any], now: float
) -> list[str]:
    """Returns those that ended by it and are waited for themselves."""
    before: dict[str, Task] = {}
    after: dict[str, Task] = {}
    changes: dict[str, dict[str, Any]] = {}
    for row in rows:
        task = after.get(row.id) or read_task(row)
        before.setdefault(task.id, task)
        other = why[row.depends_on]
        completed = other.status == State.COMPLETED
        event = Settle(completed=completed, words="" if completed else _words(other))
        effect = apply(task, None, event, now, _NO_TERMS)
        changes[task.id] = changes.get(task.id, {}) | dict(effect.task)
        decide = {name: value for name, value in effect.task.items() if name in Task._fields}
        after[task.id] = task._replace(**decide)
    write(connection, *((before[task_id], None, Effect(task=c)) for task_id, c in changes.items()))
    met = [{"_task": row.id, "_on": row.depends_on} for row in rows]
    if met:
        connection.execute(_MET, met)
    final = [task for task in after.values() if task.status in FINAL]
    if final:
        connection.execute(_GONE, {"ids": [task.id for task in final]})
    return [task.id for task in final if task.awaited]


def _words(row: Any) -> str:
    """The chain of reasons: each link names the next, the last one says what happened."""
    reason = row.error or f"exit code {row.exit_code}"
    if row.status == State.CANCELLED and not row.error:
        reason = "cancelled"
    words = f"dependency {row.id} did not complete: {reason}"
    if len(words) <= _WORDS:
        return words
    return f"{words[: _WORDS // 2]} … {words[-_WORDS // 2 + 3 :]}"
