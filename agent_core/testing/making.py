"""Tasks, events and outcomes for tests, each like no other where it matters."""

import itertools
from dataclasses import replace
from typing import Any

from agent_core.lifecycle import EventKind, Status
from agent_core.models import Event, Outcome, Reason, Task
from agent_core.protocols import Store

_numbers = itertools.count(1)


def make_task(**fields: Any) -> Task:
    """A task like no other; `fields` as in Task."""
    filled: dict[str, Any] = {
        "id": f"task-{next(_numbers):06}",
        "command": "true",
        "attempt_id": "attempt-1",
        "source": "some_source",
        "created_at": 1_700_000_000.0,
        **fields,
    }
    return Task(**filled)


def make_event(task: Task, kind: EventKind, **fields: Any) -> Event:
    """What is told of this task; `fields` as in Event."""
    filled: dict[str, Any] = {
        "kind": kind,
        "key": task.key,
        "source": task.source,
        "run_no": task.run_no,
        "at": 1_700_000_100.25,
        **fields,
    }
    return Event(**filled)


def make_outcome(output: bytes = b"", **fields: Any) -> Outcome:
    """A success that printed something; `fields` as in Outcome."""
    return Outcome(**{"reason": Reason.EXITED, "exit_code": 0, "stdout": output, **fields})


async def finish(store: Store, task: Task, outcome: Outcome) -> Task:
    """Bring a stored task to its end, with the event that tells it."""
    changes: dict[str, object] = {"status": Status.COMPLETED, "outcome": outcome}
    event = make_event(task, EventKind.COMPLETE, outcome=outcome)
    assert await store.save(task, changes, event)
    return replace(task, status=Status.COMPLETED, outcome=outcome)
