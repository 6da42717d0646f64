"""Why a task is where it is: what it waits for, and what each machine lacks or is busy with."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, select, tuple_

from agent_control_plane import choice, needs, offers, reasons
from agent_control_plane.ledger import no_such_task
from agent_control_plane.reasons import Holder, Machine, Reason, ago, short
from agent_control_plane.rows import OWN_ATTEMPT, OWN_TASK
from agent_control_plane.states import FINAL, HELD, State
from agent_control_plane.tables import agents, attempts, tasks
from agent_core.api.wire import Json, rfc3339

MACHINES_SHOWN: Final = 100
_AGENTS_READ: Final = 1000  # those heard of last
_HOLDERS_READ: Final = 200  # of one agent
_DEPENDENCIES_SHOWN: Final = 20
_AHEAD_COUNTED: Final = 1000

_TASK = (
    select(tasks, attempts.c.lease_expires_at, attempts.c.regrant_at)
    .select_from(OWN_ATTEMPT)
    .where(tasks.c.id == bindparam("task"))
)
_NAMED = select(tasks.c.id, tasks.c.status, tasks.c.assigned_machine_id, tasks.c.started_at).where(
    tasks.c.id.in_(bindparam("ids", expanding=True))
)
_AGENTS = select(agents).order_by(agents.c.last_seen_at.desc()).limit(_AGENTS_READ)
_HOLDERS = (
    select(attempts.c.agent_id, tasks.c.id, tasks.c.resources, attempts.c.granted_at,
           attempts.c.started_at)
    .select_from(OWN_TASK)
    .where(
        attempts.c.agent_id.in_(bindparam("agents", expanding=True))
        & attempts.c.ended_at.is_(None)
        & tasks.c.ready_for.is_(None)
    )
    .limit(_AGENTS_READ * 10)
)  # fmt: skip
_AHEAD = select(func.count()).select_from(
    select(tasks.c.seq)
    .where(
        (tasks.c.ready_for == bindparam("ready_for"))
        & (tasks.c.needs == bindparam("needs"))
        & (
            tuple_(*choice.URGENCY)
            < tuple_(bindparam("priority"), bindparam("created_at"), bindparam("seq"))
        )
    )
    .limit(_AHEAD_COUNTED)
    .subquery()
)
Columns = Mapping[str, Any]


class Told(NamedTuple):
    code: Reason
    text: str
    machine_id: str = ""


def explain(
    connection: Connection, task_id: str, now: float, older_workers: int
) -> dict[str, Json]:
    """Reasons, the most hopeful machine first. Raises Problem if there is no such task.

    `older_workers` is how many tasks an agent runs that does not tell how many.
    """
    row = connection.execute(_TASK, {"task": task_id}).mappings().first()
    if row is None:
        raise no_such_task(task_id)
    told = _of_task(connection, dict(row), now, older_workers)
    return {
        "reasons": [
            {"machine_id": each.machine_id, "code": each.code.value, "text": each.text}
            for each in told
        ]
    }


def _of_task(
    connection: Connection, row: Columns, now: float, older_workers: int
) -> Sequence[Told]:
    status = State(row["status"])
    if status in FINAL:
        what = f": {row['error']}" if row["error"] else ""
        return [Told(Reason.FINAL, f"{status.value} at {rfc3339(row['ended_at'])}{what}")]
    if status in HELD:
        return _held(row, status, now)
    if row["unmet"]:
        return _dependencies(connection, row, now)
    if row["due_at"] is not None:
        return [Told(Reason.RETRY_DUE, _again(row, now))]
    return [*_lost(row, now), *_machines(connection, row, now, older_workers)]


def _held(row: Columns, status: State, now: float) -> list[Told]:
    machine, agent = row["assigned_machine_id"], row["assigned_agent_id"]
    if status is State.PREEMPTED:
        words = f"it made room for more urgent work; {agent} runs it again when there is room"
        told = [Told(Reason.PREEMPTED, words, machine)]
    elif status is State.ASSIGNED and row["due_at"] is not None:
        told = [Told(Reason.RETRY_DUE, f"a run failed; on {agent} {_again(row, now)}", machine)]
    elif status is State.ASSIGNED:
        words = f"granted to {agent} {ago(now - row['assigned_at'])} ago, which has not begun it"
        told = [Told(Reason.ASSIGNED, words, machine)]
    elif status is State.SUSPENDED:
        told = [Told(Reason.SUSPENDED, f"{agent} holds it, suspended", machine)]
    else:
        began = row["started_at"] or row["assigned_at"]
        told = [Told(Reason.RUNNING, f"{agent} has run it for {ago(now - began)}", machine)]
    if row["cancel_requested_at"] is not None:
        since = ago(now - row["cancel_requested_at"])
        words = f"its cancel was requested {since} ago; {agent} has not ended it yet"
        told.append(Told(Reason.CANCEL_REQUESTED, words, machine))
    lease = row["lease_expires_at"]
    if lease is not None and now >= lease:
        told.append(_unreachable(row, now))
    return told


def _again(row: Columns, now: float) -> str:
    due = row["due_at"]
    return f"it runs again in {ago(due - now)}, at {rfc3339(due)}"


def _unreachable(row: Columns, now: float) -> Told:
    agent, regrant = row["assigned_agent_id"], row["regrant_at"]
    words = f"{agent} has not been heard of since {rfc3339(row['lease_expires_at'])}"
    if now < regrant:
        words += f"; others may have the task from {rfc3339(regrant)} on"
    else:
        words += "; others may have the task, and until then it may come back"
    return Told(Reason.UNREACHABLE, words, row["assigned_machine_id"])


def _lost(row: Columns, now: float) -> list[Told]:
    """Of a task that waits, but whose last attempt may still come back."""
    return [] if row["lease_expires_at"] is None else [_unreachable(row, now)]


def _dependencies(connection: Connection, row: Columns, now: float) -> list[Told]:
    ids = json.loads(row["depends_on"])
    known = {each.id: each for each in connection.execute(_NAMED, {"ids": ids})}
    open_ids = [each for each in ids if each in known and known[each].status not in FINAL]
    told = []
    for each in open_ids[:_DEPENDENCIES_SHOWN]:
        other = known[each]
        words = other.status
        if other.status == State.RUNNING:
            since = "" if other.started_at is None else f" for {ago(now - other.started_at)}"
            words = f"running on {other.assigned_machine_id}{since}"
        told.append(Told(Reason.DEPENDENCY, f"waits for task {short(each)}, which is {words}"))
    if len(open_ids) > _DEPENDENCIES_SHOWN:
        more = len(open_ids) - _DEPENDENCIES_SHOWN
        told.append(Told(Reason.DEPENDENCY, f"and for {more} tasks more"))
    if not told:
        told.append(Told(Reason.DEPENDENCY, "what it waited for has ended; it is told at once"))
    return told


def _machines(connection: Connection, row: Columns, now: float, older_workers: int) -> list[Told]:
    pinned, needed = row["machine_id"], needs.read(row["needs"])
    query = _AGENTS.where(agents.c.machine_id == pinned) if pinned else _AGENTS
    found = [dict(each) for each in connection.execute(query).mappings()]
    if not found and pinned:
        words = f"it must run on machine {pinned}, of which no agent has ever been heard"
        return [Told(Reason.UNKNOWN_MACHINE, words, pinned)]
    if not found:
        return [Told(Reason.NO_MACHINE, "no agent has been heard of; start one")]
    ahead = _Ahead(connection, row)
    told = [
        Told(
            *reasons.of_machine(needed, machine, partial(ahead.of, machine), now),
            machine.offer.machine_id,
        )
        for machine in _known(connection, found, older_workers)
    ]
    told.sort(key=lambda each: (reasons.RANK[each.code], each.machine_id))
    return told[:MACHINES_SHOWN]


def _known(connection: Connection, found: Sequence[Columns], older_workers: int) -> list[Machine]:
    held: dict[str, list[Holder]] = {}
    for each in connection.execute(_HOLDERS, {"agents": [row["id"] for row in found]}):
        holder = Holder(
            task_id=each.id,
            since=each.started_at or each.granted_at,
            resources=offers.resources(each.resources),
        )
        held.setdefault(each.agent_id, []).append(holder)
    return [
        Machine(
            offer=offers.offer(row["machine_id"], row["has"], row["free"], 1),
            slots=row["max_workers"] or older_workers,
            last_seen_at=row["last_seen_at"],
            untold=not row["free"],
            holders=held.get(row["id"], [])[:_HOLDERS_READ],
        )
        for row in found
    ]


class _Ahead:
    """How many tasks would be given to a machine before this one."""

    def __init__(self, connection: Connection, row: Columns) -> None:
        self._connection = connection
        self._key = (row["priority"], row["created_at"], row["seq"])
        self._lines: dict[str, list[choice.Line]] = {}
        self._counts: dict[choice.Line, int] = {}

    def of(self, machine: Machine) -> int:
        found = 0
        for line in (*self._before(""), *self._before(machine.offer.machine_id)):
            if needs.fits(needs.read(line.needs), machine.offer):
                found += self._count(line)
        return min(found, _AHEAD_COUNTED)

    def _before(self, ready_for: str) -> Sequence[choice.Line]:
        if ready_for not in self._lines:
            waiting = choice.lines(self._connection, ready_for)
            self._lines[ready_for] = [line for line in waiting if line.head < self._key]
        return self._lines[ready_for]

    def _count(self, line: choice.Line) -> int:
        if line not in self._counts:
            priority, created_at, seq = self._key
            where = {"ready_for": line.ready_for, "needs": line.needs, "priority": priority}
            counted = self._connection.execute(
                _AHEAD, {**where, "created_at": created_at, "seq": seq}
            )
            self._counts[line] = counted.scalar() or 0
        return self._counts[line]
