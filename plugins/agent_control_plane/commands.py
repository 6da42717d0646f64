"""Words to agents: kept until they are answered or their task has ended, told again meanwhile."""

import uuid
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from agent_control_plane.messages import Ordered, say
from agent_control_plane.states import FINAL, Task
from agent_control_plane.tables import agents, attempts, commands, tasks
from agent_core import log
from agent_core.api.wire import Action, Code, Json, Word

TOLD_EVERY: Final = 10.0  # seconds, until it is answered
TOLD_AT_ONCE: Final = 100
_log = log.get("server")
_FINAL: Final = sorted(state.value for state in FINAL)

_HOLDER = (
    select(attempts.c.agent_id, agents.c.capabilities)
    .select_from(attempts.join(agents, agents.c.id == attempts.c.agent_id))
    .where(attempts.c.id == bindparam("attempt"))
)
# Of a task that has ended, or whose attempt is over, nothing is told any more.
_STANDS = (
    select(tasks.c.id)
    .where(tasks.c.id == commands.c.task_id)
    .where(tasks.c.attempt_id == commands.c.attempt_id)
    .where(tasks.c.status.not_in(_FINAL))
    .exists()
)
_OPEN = (
    select(commands)
    .where((commands.c.agent_id == bindparam("agent")) & _STANDS)
    .order_by(commands.c.created_at, commands.c.id)
    .limit(TOLD_AT_ONCE)
)
# Whether there may be any for the agent of the row around it.
EXIST: Final = select(commands.c.id).where(commands.c.agent_id == agents.c.id).exists()
_TOLD = (
    update(commands)
    .where(commands.c.id.in_(bindparam("ids", expanding=True)))
    .values(told_at=bindparam("now"))
)
_ANSWERED = delete(commands).where(
    (commands.c.id == bindparam("_id")) & (commands.c.agent_id == bindparam("agent"))
)
_SAME = (
    select(commands.c.id)
    .where(commands.c.task_id == bindparam("task"))
    .where(commands.c.attempt_id == bindparam("attempt"))
    .where(commands.c.action == bindparam("action"))
)


class Told(NamedTuple):
    """What an answer to an agent carries."""

    commands: Sequence[dict[str, Json]] = ()
    again_at: float | None = None  # when there is something to be told again


NONE: Final = Told()


def order(connection: Connection, task: Task, action: Action, reason: str, now: float) -> None:
    """Make one for the agent that holds the task, if it takes commands and has none like it."""
    holder = connection.execute(_HOLDER, {"attempt": task.attempt_id}).first()
    if holder is None or Word.COMMANDS not in holder.capabilities.split():
        return
    what = {"task": task.id, "attempt": task.attempt_id, "action": action.value}
    if connection.execute(_SAME, what).first() is not None:
        return
    made = {
        "id": str(uuid.uuid4()),
        "agent_id": holder.agent_id,
        "action": action.value,
        "task_id": task.id,
        "attempt_id": task.attempt_id,
        "reason": reason,
        "created_at": now,
    }
    connection.execute(insert(commands), made)
    say(connection, Ordered(holder.agent_id))


def watch(connection: Connection, task: Task, now: float) -> None:
    """Tell its agent that somebody reads the task's output now, unless it knows."""
    if task.watched_until is None or task.watched_until < now:
        order(connection, task, Action.WATCH, "", now)


def tell(connection: Connection, agent_id: str, now: float) -> Told:
    """What the agent is to be told now; it has been told then."""
    rows = connection.execute(_OPEN, {"agent": agent_id}).all()
    if not rows:
        return NONE
    due = [row for row in rows if _is_due(row, now)]
    later = [row.told_at for row in rows if row not in due]
    if due:
        connection.execute(_TOLD, {"ids": [row.id for row in due], "now": now})
        later.append(now)
    return Told([_wire(row) for row in due], min(later) + TOLD_EVERY)


def _is_due(row: Any, now: float) -> bool:
    return row.told_at is None or not 0 <= now - row.told_at < TOLD_EVERY


def _wire(row: Any) -> dict[str, Json]:
    return {
        "id": row.id,
        "action": row.action,
        "task_id": row.task_id,
        "attempt_id": row.attempt_id,
        "reason": row.reason,
    }


def answered(
    connection: Connection, agent_id: str, command_id: str, code: int, message: str
) -> None:
    """The agent has carried it out, or said why not: it is not told again."""
    connection.execute(_ANSWERED, {"_id": command_id, "agent": agent_id})
    if code != Code.OK:
        _log.warning(
            "an agent did not carry out a command",
            agent=agent_id, command=command_id, code=code, why=message,
        )  # fmt: skip


def forget(connection: Connection) -> None:
    """Commands whose task has ended, or whose attempt is over."""
    connection.execute(delete(commands).where(~_STANDS))
