"""One task's way through its states: its moves as they happen, and how the last run ended."""

import asyncio
from dataclasses import replace
from typing import Any

from agent_core.clock import Clock
from agent_core.lifecycle import FINAL, Move
from agent_core.models import Outcome, Reason, Task
from agent_core.moves import Moves


class Course:
    """`task` is as it really stands, and a moment later so stored."""

    def __init__(self, task: Task, moves: Moves, clock: Clock, log: Any) -> None:
        self.task = task
        self._moves = moves
        self._clock = clock
        self._log = log

    def happened(
        self, move: Move, *, soon: bool = False, outcome: Outcome | None = None, **changes: Any
    ) -> "asyncio.Future[None]":
        """A move that is a fact; done when it is stored. Conflict: somebody else moved the task."""
        self.task, kept = self._moves.happened(
            self.task, move, soon=soon, outcome=outcome, **changes
        )
        return kept

    async def make(
        self, move: Move, *, soon: bool = True, outcome: Outcome | None = None, **changes: Any
    ) -> None:
        """Make a move and go on when it is stored."""
        await self.happened(move, soon=soon, outcome=outcome, **changes)
        self._say_how(outcome)

    async def end(self, outcome: Outcome) -> None:
        """Its run ended: the task is final, or another run follows. Returns when that is stored."""
        if not outcome.ended_at:
            outcome = replace(outcome, ended_at=self._clock.wall())
        if outcome.reason is Reason.CANCELLED:
            kept = self.happened(Move.CANCEL, outcome=outcome)
        elif outcome.reason is Reason.PREEMPTED:
            self.happened(Move.PREEMPT, outcome=outcome)
            kept = self.happened(Move.RETURN)
        elif outcome.success:
            kept = self.happened(Move.COMPLETE, outcome=outcome)
        elif self.may_try_again:
            kept = self.happened(Move.RETRY, outcome=outcome, **self.next_try())
        else:
            kept = self.happened(Move.FAIL, outcome=outcome)
        await kept
        self._say_how(outcome)

    @property
    def may_try_again(self) -> bool:
        return self.task.retry_count < self.task.max_retries

    def next_try(self) -> dict[str, Any]:
        """What a move changes after which it waits for its next run."""
        return {
            "due_at": self._clock.wall() + self.task.retry_delay,
            "retry_count": self.task.retry_count + 1,
        }

    def _say_how(self, outcome: Outcome | None) -> None:
        if self.task.status in FINAL:
            words = {"why": outcome.error} if outcome and outcome.error else {}
            self._log.info(self.task.status.value, **words)
