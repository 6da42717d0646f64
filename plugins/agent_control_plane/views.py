"""Tasks as they go over the wire: to users, and to agents of our own protocol."""

import json
from collections.abc import Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

from agent_control_plane.states import HELD, State
from agent_core.api.wire import Json, rfc3339

DESCRIPTION: Final = (
    *("name", "type", "command", "args", "exec", "workdir", "env", "timeout", "priority"),
    *("max_retries", "retry_delay", "machine_id", "group_id", "disconnect_grace"),
    *("on_lost_contact", "depends_on", "user", "labels", "resources", "executor"),
)
_of_description: Final = itemgetter(*DESCRIPTION)
_NOWHERE: Final = {
    "assigned_at": None,
    "assigned_agent_id": "",
    "attempt_id": None,
    "started_at": None,
    "progress": None,
    "progress_message": "",
}
Columns = Mapping[str, Any]


def number(value: float) -> float | int:
    """Whole seconds as an integer: the wire tells 3 from 3.0."""
    return int(value) if float(value).is_integer() else value


@lru_cache(maxsize=64)
def _moment(seconds: float | None) -> str | None:
    """The tasks of one claim have these in common."""
    return rfc3339(seconds)


def _loaded(text: str) -> Json:
    """Most are empty, and each costs as much as a column."""
    return [] if text == "[]" else {} if text == "{}" else json.loads(text)


def from_json(text: str | None) -> Json:
    return None if text is None else json.loads(text)


def granted_task(row: Columns, grace: float) -> dict[str, Json]:
    """A task for the agent that holds it."""
    return {
        "id": row["id"],
        **_described(row, grace),
        "parent_id": row["parent_id"],
        "retry_count": row["retry_count"],
        "status": row["status"],
        "created_at": rfc3339(row["created_at"]),
        "assigned_at": _moment(row["assigned_at"]),
        "lease_expires_at": _moment(row["lease_expires_at"]),
        "regrant_at": _moment(row["regrant_at"]),
        "assigned_agent_id": row["assigned_agent_id"],
        "attempt_id": row["attempt_id"],
    }


def summary(row: Columns, grace: float, now: float) -> dict[str, Json]:
    """A task for its user, without output and runs."""
    held = State(row["status"]) in HELD
    lease = row["lease_expires_at"] if held else None
    task = {
        "id": row["id"],
        "status": row["status"],
        **_described(row, grace),
        "parent_id": row["parent_id"],
        "retry_count": row["retry_count"],
        "created_at": rfc3339(row["created_at"]),
        "assigned_at": rfc3339(row["assigned_at"]),
        "started_at": rfc3339(row["started_at"]),
        "ended_at": rfc3339(row["ended_at"]),
        "lease_expires_at": rfc3339(lease),
        "regrant_at": rfc3339(row["regrant_at"] if held else None),
        "unreachable_since": rfc3339(lease if lease is not None and now >= lease else None),
        "next_run_at": rfc3339(row["due_at"]),
        "waits_for": waits_for(row),
        "assigned_agent_id": row["assigned_agent_id"],
        "attempt_id": row["attempt_id"],
        "cancel_requested_at": rfc3339(row["cancel_requested_at"]),
        "cancel_reason": row["cancel_reason"],
        "progress": row["progress"],
        "progress_message": row["progress_message"],
        **_result(row),
    }
    if row["status"] == State.PENDING:  # whoever had it before is no matter any more
        return {**task, **_NOWHERE}
    if row["assigned_machine_id"]:
        task["machine_id"] = row["assigned_machine_id"]
    return task


def waits_for(row: Columns) -> str | None:
    """In a few words, of the task's own columns alone; None if it does not wait."""
    if row["status"] == State.ASSIGNED and row["due_at"] is not None:
        return "its retry"
    if row["status"] == State.PREEMPTED:
        return "a slot"
    if row["status"] != State.PENDING:
        return None
    if row["unmet"]:
        return f"{row['unmet']} task{'s' if row['unmet'] > 1 else ''}"
    if row["due_at"] is not None:
        return "its retry"
    asked = _loaded(row["resources"])
    words = []
    if asked.get("gpus"):
        words.append(" ".join(filter(None, (str(asked["gpus"]), asked.get("gpu"), "GPU"))))
    words += [name for name in ("cpus", "memory") if asked.get(name)]
    words += [f"{name}={value}" for name, value in _loaded(row["labels"]).items()]
    words += [row[name] for name in ("executor", "machine_id") if row[name]]
    return ", ".join(words)[:80] or "a slot"


def run(row: Columns, run_no: int) -> dict[str, Json]:
    """One run, numbered over all attempts; begun and ended also by its agent's clock."""
    return {
        "run_no": run_no,
        "attempt_id": row["attempt_id"],
        "agent_id": row["agent_id"],
        "machine_id": row["machine_id"],
        "started_at": rfc3339(row["started_at"]),
        "ended_at": rfc3339(row["ended_at"]),
        "agent_started_at": rfc3339(row["began_at"]),
        "agent_ended_at": rfc3339(row["told_at"]),
        **_result(row),
    }


def _described(row: Columns, grace: float) -> dict[str, Json]:
    described = dict(zip(DESCRIPTION, _of_description(row), strict=True))
    own = row["disconnect_grace"]
    return described | {
        "args": _loaded(row["args"]),
        "env": _loaded(row["env"]),
        "depends_on": _loaded(row["depends_on"]),
        "labels": _loaded(row["labels"]),
        "resources": _loaded(row["resources"]),
        "exec": bool(row["exec"]),
        "timeout": number(row["timeout"]),
        "retry_delay": number(row["retry_delay"]),
        "disconnect_grace": number(grace if own is None else own),
    }


def _result(row: Columns) -> dict[str, Json]:
    return {
        "exit_code": row["exit_code"],
        "signal": row["signal"],
        "reason": row["reason"],
        "error_code": row["error_code"],
        "error": row["error"],
        "usage": from_json(row["usage"]),
        "truncated": from_json(row["truncated"]),
    }
