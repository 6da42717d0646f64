"""The only way a task changes its state: advance, compare-and-set and event in one transaction."""

import asyncio
from collections.abc import Callable
from typing import Any

from agent_core.amended import amended
from agent_core.backoff import Backoff
from agent_core.behind import Behind
from agent_core.clock import Clock
from agent_core.errors import Conflict
from agent_core.lifecycle import EventKind, IllegalMove, Move, Status, advance
from agent_core.models import Change, Event, Outcome, Task, TaskRun
from agent_core.protocols import Store


class Moves:
    """Makes moves for worker and runner; nobody else calls `advance`."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        stored: Callable[[], None],
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        """`stored` is called when events were stored."""
        self._clock = clock
        self._behind = Behind(store, clock, stored, backoff)

    async def make(
        self, task: Task, move: Move, *, outcome: Outcome | None = None, **changes: Any
    ) -> Task:
        """Move the task and return it as it is now.

        `changes` names fields of Task's second group. The outcome stays with the task, or, when
        another run follows, with the run that ended. Raises Conflict if the task stands elsewhere
        by now, StoreError if it could not be saved: then nothing has changed.
        """
        after, change = self._planned(task, move, outcome, changes)
        await self._behind.put(change, soon=True, keep=False)
        return after

    def beforehand(self, task: Task, move: Move, **changes: Any) -> Task:
        """A task that is not stored yet, as it will be stored: after a move without an event."""
        after, change = self._planned(task, move, None, changes)
        assert not change.events, "whoever is told of it knows nothing of the task"
        return after

    def happened(
        self,
        task: Task,
        move: Move,
        *,
        soon: bool = False,
        outcome: Outcome | None = None,
        **changes: Any,
    ) -> "tuple[Task, asyncio.Future[None]]":
        """The task after a move that is a fact, and when it is stored: in order, a moment later.

        A store that cannot keep it now (a full disk) is asked until it can. `soon`: somebody waits
        for it. The future raises Conflict if somebody else moved the task; so does this.
        """
        after, change = self._planned(task, move, outcome, changes)
        return after, self._behind.put(change, soon=soon, keep=True)

    def hurry(self) -> None:
        """Somebody waits by now for what happened in no hurry."""
        self._behind.hurry()

    async def close(self) -> None:
        """Store nothing more: what was not stored by now is found again after a restart."""
        await self._behind.close()

    def _planned(
        self, task: Task, move: Move, outcome: Outcome | None, changes: dict[str, Any]
    ) -> tuple[Task, Change]:
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
        after = amended(task, changes)
        event = self._event(transition.event, after, outcome) if transition.event else None
        return after, Change(
            before=task, changes=changes, events=(event,) if event else (), ended_run=ended_run
        )

    def _event(self, kind: EventKind, task: Task, outcome: Outcome | None) -> Event | None:
        if not task.source:
            return None  # submitted here: there is nobody to tell
        waits = task.status is Status.PENDING  # for a time, not for room
        return Event(
            kind=kind,
            key=task.key,
            source=task.source,
            run_no=task.run_no,
            at=self._clock.wall(),
            started_at=_wall(task),
            next_run_at=task.due_at if kind is EventKind.RUN and waits else None,
            outcome=outcome,
        )


def _wall(task: Task) -> float | None:
    return task.started_at.wall if task.started_at else None
