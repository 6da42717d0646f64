"""The only way a task changes its state: advance, compare-and-set and event in one transaction."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agent_core.clock import Clock
from agent_core.errors import Conflict
from agent_core.lifecycle import EventKind, IllegalMove, Move, advance
from agent_core.models import Event, Outcome, Task, TaskRun
from agent_core.protocols import Store


class Moves:
    """Makes moves for worker and runner; nobody else calls `advance`."""

    def __init__(self, store: Store, clock: Clock, stored: Callable[[], None]) -> None:
        self._store = store
        self._clock = clock
        self._stored = stored  # called when an event was stored

    async def make(
        self, task: Task, move: Move, *, outcome: Outcome | None = None, **changes: Any
    ) -> Task:
        """Move the task and return it as it is now.

        `changes` names fields of Task's second group. The outcome stays with the task, or, when
        another run follows, with the run that ended. Raises Conflict if the task stands elsewhere
        by now, StoreError if it could not be saved: then nothing has changed.
        """
        try:
            transition = advance(task.status, move)
        except IllegalMove as error:
            raise Conflict(str(error)) from error
        ended_run = None
        if transition.event is EventKind.RUN:
            assert outcome is not None, "a run that ended has an outcome"
            ended_run = TaskRun(task.run_no, _wall(task), outcome)
        elif outcome is not None:
            changes["outcome"] = outcome
        changes["status"] = transition.target
        after = replace(task, **changes)
        event = self._event(transition.event, after, outcome) if transition.event else None
        if not await self._store.save(task, changes, event, ended_run):
            raise Conflict(f"task {task.id} is not {task.status.value} any more")
        if event:
            self._stored()
        return after

    def _event(self, kind: EventKind, task: Task, outcome: Outcome | None) -> Event | None:
        if not task.source:
            return None  # submitted here: there is nobody to tell
        return Event(
            kind=kind,
            key=task.key,
            source=task.source,
            run_no=task.run_no,
            at=self._clock.wall(),
            started_at=_wall(task),
            next_run_at=task.due_at if kind is EventKind.RUN else None,
            outcome=outcome,
        )


def _wall(task: Task) -> float | None:
    return task.started_at.wall if task.started_at else None
