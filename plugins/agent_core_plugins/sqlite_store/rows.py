"""Between the agent's data and the rows of its database."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent_core import (
    Event,
    EventKind,
    Instant,
    Key,
    Lease,
    Outcome,
    Reason,
    Resources,
    Status,
    Task,
    TaskRun,
    Usage,
    resources,
)
from agent_core_plugins.sqlite_store import statements as sql

Row = Sequence[Any]

_LEASE = ("lease", "lease_boottime", "lease_boot_id", "lease_stop_after")
_EMPTY = "{}"
_NONE = "[]"
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=True)
_AT = {name: place for place, name in enumerate(sql.TASK)}
_OUTCOME_AT = _AT["reason"]
_LEASE_AT = _AT["lease"]
_ASSIGNED_AT = _AT["assigned_at"]
_STARTED_AT = _AT["started_at"]
_NOT_ENDED: tuple[object, ...] = (None,) * len(sql.OUTCOME)


def _dumps(value: Any) -> str:
    return _ENCODER.encode(value) if value else _EMPTY


def _loads(text: str) -> Any:
    return {} if text == _EMPTY else json.loads(text)


def _list(values: Sequence[str]) -> str:
    return _ENCODER.encode(list(values)) if values else _NONE


def _tuple(text: str) -> tuple[str, ...]:
    return () if text == _NONE else tuple(json.loads(text))


def _resources(text: str) -> Resources:
    return resources.NOTHING if text == _EMPTY else resources.read(json.loads(text))


def task_row(task: Task) -> tuple[object, ...]:
    """In the order of `statements.ADD_TASK`, which is the table's."""
    return (
        task.id,
        task.attempt_id,
        task.source,
        task.name,
        task.type,
        task.command,
        _list(task.args),
        task.exec,
        task.workdir,
        _dumps(dict(task.env)),
        task.timeout,
        task.priority,
        task.max_retries,
        task.retry_delay,
        task.created_at,
        task.unreadable,
        _dumps(dict(task.extra)),
        task.status.value,
        *_lease_row(task.lease),
        task.due_at,
        task.retry_count,
        task.run_no,
        task.start_id,
        *_instant_row(task.assigned_at),
        *_instant_row(task.started_at),
        task.executor,
        _dumps(dict(task.handle)),
        task.user,
        _list(task.depends_on),
        _dumps(dict(task.labels)),
        _dumps(resources.as_json(task.resources)),
        task.wanted_executor,
        _list(task.devices),
        *outcome_row(task.outcome),
    )


def outcome_row(outcome: Outcome | None) -> tuple[object, ...]:
    if outcome is None:
        return _NOT_ENDED
    return (
        outcome.reason.value,
        outcome.exit_code,
        outcome.signal,
        int(outcome.error_code),
        # Words for people, made of anything (a path, another program's text): kept readable.
        outcome.error.encode("utf-8", "replace").decode("utf-8"),
        outcome.dropped_stdout,
        outcome.dropped_stderr,
        _usage(outcome.usage),
        outcome.ended_at,
        outcome.stdout,
        outcome.stderr,
    )


def _usage(usage: Usage | None) -> str | None:
    if usage is None:
        return None
    return _ENCODER.encode(
        {
            "wall_s": usage.wall_s,
            "user_s": usage.user_s,
            "system_s": usage.system_s,
            "max_rss_bytes": usage.max_rss_bytes,
        }
    )


def run_row(key: Key, run: TaskRun) -> tuple[object, ...]:
    return (*key, run.run_no, run.started_at, *outcome_row(run.outcome))


def event_row(event: Event) -> tuple[object, ...]:
    """In the order of `statements.ADD_EVENT`, which is the table's."""
    return (
        event.kind.value,
        *event.key,
        event.source,
        event.run_no,
        event.at,
        event.started_at,
        event.next_run_at,
    )


def as_task(row: Row) -> Task:
    """Of a whole row, or of one without its last two columns, the output."""
    return Task(
        id=row[0],
        attempt_id=row[1],
        source=row[2],
        name=row[3],
        type=row[4],
        command=row[5],
        args=_tuple(row[6]),
        exec=bool(row[7]),
        workdir=row[8],
        env=_loads(row[9]),
        timeout=row[10],
        priority=row[11],
        max_retries=row[12],
        retry_delay=row[13],
        created_at=row[14],
        unreadable=row[15],
        extra=_loads(row[16]),
        status=Status(row[17]),
        lease=_lease(row[_LEASE_AT : _LEASE_AT + 4]),
        due_at=row[_AT["due_at"]],
        retry_count=row[_AT["retry_count"]],
        run_no=row[_AT["run_no"]],
        start_id=row[_AT["start_id"]],
        assigned_at=_instant(row[_ASSIGNED_AT : _ASSIGNED_AT + 3]),
        started_at=_instant(row[_STARTED_AT : _STARTED_AT + 3]),
        executor=row[_AT["executor"]],
        handle=_loads(row[_AT["handle"]]),
        user=row[_AT["user"]],
        depends_on=_tuple(row[_AT["depends_on"]]),
        labels=_loads(row[_AT["labels"]]),
        resources=_resources(row[_AT["resources"]]),
        wanted_executor=row[_AT["wanted_executor"]],
        devices=_tuple(row[_AT["devices"]]),
        outcome=as_outcome(row[_OUTCOME_AT:]),
    )


def as_outcome(row: Row) -> Outcome | None:
    """Of the outcome's columns, with or without the last two, the output."""
    if row[0] is None:
        return None
    stdout, stderr = row[9:11] if len(row) > 9 else (b"", b"")
    return Outcome(
        reason=Reason(row[0]),
        exit_code=row[1],
        signal=row[2],
        error_code=row[3],
        error=row[4],
        dropped_stdout=row[5],
        dropped_stderr=row[6],
        usage=Usage(**json.loads(row[7])) if row[7] else None,
        ended_at=row[8],
        stdout=stdout,
        stderr=stderr,
    )


def as_run(row: Row) -> TaskRun:
    outcome = as_outcome(row[2:])
    assert outcome is not None, "a run on record has ended"
    return TaskRun(row[0], row[1], outcome)


def as_event(row: Row, outcome: Outcome | None) -> Event:
    """Of the outbox's columns."""
    return Event(
        kind=EventKind(row[0]),
        key=Key(row[1], row[2]),
        source=row[3],
        run_no=row[4],
        at=row[5],
        started_at=row[6],
        next_run_at=row[7],
        seq=row[8],
        outcome=outcome,
    )


def _instant_row(instant: Instant | None) -> tuple[object, object, object]:
    if instant is None:
        return None, None, None
    return instant.wall, instant.boottime, instant.boot_id


def _instant(row: Row) -> Instant | None:
    if row[0] is None:
        return None
    return Instant(wall=row[0], boottime=row[1], boot_id=row[2])


def _lease_row(lease: Lease | None) -> tuple[object, ...]:
    if lease is None:
        return (None,) * len(_LEASE)
    return (*_instant_row(lease.until), lease.stop_after)


def _lease(row: Row) -> Lease | None:
    until = _instant(row)
    return Lease(until=until, stop_after=row[3]) if until else None


def _itself(value: object) -> tuple[object, ...]:
    return (value,)


def _instant_columns(name: str) -> tuple[str, ...]:
    return (name, f"{name}_boottime", f"{name}_boot_id")


# The second group of Task's fields, which a move may change: the columns of each, and its values.
MOVING: Mapping[str, tuple[tuple[str, ...], Callable[[Any], tuple[object, ...]]]] = {
    **{
        name: ((name,), _itself)
        for name in ("due_at", "retry_count", "run_no", "start_id", "executor")
    },
    **{name: (_instant_columns(name), _instant_row) for name in ("assigned_at", "started_at")},
    "status": (("status",), lambda status: (status.value,)),
    "lease": (_LEASE, _lease_row),
    "devices": (("devices",), lambda devices: (_list(devices),)),
    "handle": (("handle",), lambda handle: (_dumps(dict(handle)),)),
    "outcome": (sql.OUTCOME, outcome_row),
}
