"""What an executor gives: a run in progress, and a start that it can take ahead of its slot."""

import asyncio
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from typing import Any, ClassVar

from agent_core.api.wire import Json
from agent_core.clock import Instant
from agent_core.models import Outcome, Piece, Stream


class Execution(ABC):
    """One run in progress. A base class: an executor overrides what it can do better."""

    handle: Mapping[str, Json]  # by which `reattach` finds the run again after a restart
    started_at: Instant | None = None  # when its process began, if the executor knows
    grace: float = 10.0  # seconds between TERM and KILL
    terminated: str = ""  # the words of an earlier agent's `terminate`, if they are known
    survives: ClassVar[bool] = False  # goes on when the agent is gone

    @abstractmethod
    async def wait(self) -> Outcome:
        """How the run ended; returns when nothing of its process tree is left.

        Says exited, signal, oom or lost; that a timeout or a cancel was behind it is the runner's
        to know. May be awaited more than once; cancelling the wait does nothing to the run.
        """

    def outcome(self) -> "asyncio.Future[Outcome]":
        """`wait`, begun at once, as a future of the caller's own.

        An executor that hears of ends overrides it: then no run needs a task that waits for it.
        """
        return asyncio.ensure_future(self.wait())

    @abstractmethod
    async def signal(self, signum: int) -> bool:
        """Send a signal to the whole tree. False if the run's main process had ended by itself."""

    async def terminate(self, words: str) -> bool:
        """`signal` with TERM, by which a run is asked to end, for a reason in a few words.

        An executor that can keeps the words of the first time with the run, and gives them back as
        `terminated` to an agent that finds it again.
        """
        return await self.signal(signal.SIGTERM)

    async def tail(self, stream: Stream, limit: int) -> bytes:
        """The last bytes of output so far, at most `limit`."""
        return b""

    async def output(self, stream: Stream, offset: int, limit: int) -> Piece:
        """What was printed from byte `offset` of the stream on, at most `limit` bytes.

        Also after the end, until it is forgotten. The piece begins behind `offset` where what lies
        between was not kept; it is empty, with a `total` of no more than `offset`, where nothing
        follows yet. Nothing at all from an executor that shows no output before the end.
        """
        return Piece(offset, b"", 0)

    async def forget(self) -> None:
        """The end is committed: let go of what was kept to find the run again."""


class Ahead(ABC):
    """A start that an executor can take before there is a slot for it; `execute` may answer so.

    Awaited, it begins at once and gives the Execution, like any other start. Dropped without a word
    it must not be once it was handed over: it is recalled or awaited.
    """

    @abstractmethod
    def __await__(self) -> Generator[Any, None, Execution]: ...

    @abstractmethod
    def hand_over(
        self, until: float, began: Callable[[], None], lost: Callable[[], None] = lambda: None
    ) -> bool:
        """Let it begin by itself, in the place of a run of this executor that has ended.

        Those handed over begin in that order, one for each run that held a slot and nothing else
        and that nobody told to end; none after the boot time `until`. `began` is called when it
        did, before its predecessor's `outcome` is there, and unless its awaiting tells it. `lost`
        is called when it waits no more and did not begin, as far as is known: `recall` tells.
        False: it cannot be taken now, and begins only when it is awaited.
        """

    @abstractmethod
    async def recall(self) -> bool:
        """It must not begin by itself any more. False: it has begun and said so; await it."""
