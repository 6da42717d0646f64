"""Claims that wait at the server: told anew when the demand changes, and never given up."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from agent_core import AgentHandle, Demand, Json, Unreachable
from agent_core_plugins.server_client.http import Reply

MOST = 4  # claims in flight; a server that keeps to the protocol holds one
LAST_WORD = 5.0  # seconds that an agent that stops waits for the answers


class Question(NamedTuple):
    """What a claim asks for."""

    number: int  # of the request
    limit: int  # tasks at most; 0 = commands
    free: Mapping[str, Json]
    wait: int  # seconds


class Answered(NamedTuple):
    """An answer; `newest` where nothing was asked after it."""

    question: Question
    reply: Reply
    newest: bool


class Hanging:
    """The claims in flight. Their answers could carry tasks, so each is awaited.

    A later claim ends an earlier one at the server, which answers both.
    """

    def __init__(self, ask: Callable[[Question], Coroutine[Any, Any, Reply]]) -> None:
        self._ask = ask
        self._asked: dict[asyncio.Task[Reply], Question] = {}
        self._newest: asyncio.Task[Reply] | None = None

    async def answers(
        self, agent: AgentHandle, demand: Demand, question: Callable[[Demand], Question]
    ) -> list[Answered]:
        """What the server says next; raises Unreachable if that is nothing.

        When the agent stops, what hangs is ended, and whatever still comes of it is returned.
        """
        changed = demand.changed.next()
        stop = asyncio.ensure_future(agent.stopping.wait())
        try:
            while not agent.stopping.is_set():
                self._tell(question(demand.again() if demand.again else demand))
                waits: set[asyncio.Future[Any]] = {changed, stop, *self._asked}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if found := self._taken():
                    return found
                if changed.done():
                    changed = demand.changed.next()
            return await self._last(question(demand))
        except asyncio.CancelledError:  # the agent leaves at once
            await self.close()
            raise
        finally:
            changed.cancel()
            stop.cancel()

    async def rest(self, number: int, seconds: float) -> list[Answered]:
        """What else is answered, after `seconds` at most, to calls with this number."""
        same = {job for job, question in self._asked.items() if question.number == number}
        if same:
            await asyncio.wait(same, timeout=seconds)
        try:
            return self._taken()
        except Unreachable:
            return []

    def open(self, number: int) -> bool:
        """Whether a call with this number is still to be answered, and could bring tasks."""
        return any(question.number == number for question in self._asked.values())

    async def close(self) -> None:
        """Give up what is under way: its tasks come again to whoever asks by the same number."""
        for job in self._asked:
            job.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)
        self._asked.clear()

    def _tell(self, question: Question) -> None:
        """Unless just that is asked already."""
        if self._newest in self._asked and (
            self._asked[self._newest] == question or len(self._asked) >= MOST
        ):
            return
        self._newest = asyncio.create_task(self._ask(question), name=f"claim {question.number}")
        self._asked[self._newest] = question

    def _taken(self) -> list[Answered]:
        found = []
        error: BaseException | None = None
        for job in [job for job in self._asked if job.done()]:
            question = self._asked.pop(job)
            if job.cancelled() or job.exception():
                error = None if job.cancelled() else job.exception()
            else:
                found.append(Answered(question, job.result(), newest=job is self._newest))
        if error and not found:
            raise error
        return found

    async def _last(self, question: Question) -> list[Answered]:
        if not self._asked:
            return []
        self._tell(question._replace(limit=0, wait=0))
        await asyncio.wait(self._asked, timeout=LAST_WORD)
        try:
            return self._taken()
        except Unreachable:
            return []
        finally:
            await self.close()
