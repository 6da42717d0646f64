"""Plugins that live in an agent under test, where the test can reach them by the agent's id."""

import asyncio
from collections import deque
from typing import Any, ClassVar

from agent_core.api.wire import Answer
from agent_core.errors import Unreachable
from agent_core.hookspecs import hookimpl
from agent_core.models import Claim, Demand, Launch, Receipt, Task, Verdict
from agent_core.protocols import AgentHandle, PluginContext
from agent_core.testing.executors import HandExecutor


class Resident:
    """One agent's; `made` holds the latest of each class by state directory."""

    made: ClassVar[dict[tuple[str, str], Any]] = {}

    def __init__(self, settings: object, context: PluginContext) -> None:
        self.context = context
        Resident.made[type(self).__name__, str(context.state_dir)] = self


class Hand(HandExecutor):
    """Its runs outlive the agent: the next one of the same directory finds them."""

    def __init__(self, settings: object, context: PluginContext) -> None:
        super().__init__(outlives=not (context.state_dir / "children").exists())
        place = "Hand", str(context.state_dir)
        before = Resident.made.get(place)
        if before:
            self.runs = before.runs
        Resident.made[place] = self


class Site(Resident):
    @hookimpl
    async def validate(self, task: Task, launch: Launch) -> Verdict:
        return Verdict.allow()


class Work(Resident):
    """A source with a part that lives beside the work."""

    def __init__(self, settings: object, context: PluginContext) -> None:
        super().__init__(settings, context)
        self.claims: deque[Claim] = deque()
        self.asked = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.away = (context.state_dir / "away").exists()
        self.told: list[tuple[str, str]] = []
        self.agent: AgentHandle | None = None
        self.serving = asyncio.Event()
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def bring(self, *tasks: Task) -> None:
        self.claims.append(Claim(tasks=tasks))

    @hookimpl
    async def claim(self, demand: Demand) -> Claim:
        self.asked.set()
        if self.gate:
            await self.gate.wait()
        return self.claims.popleft() if self.claims else Claim(ask_again=0.01)

    @hookimpl
    async def report(self, events: Any) -> Any:
        if self.away:
            raise Unreachable("no route")
        self.told += [(event.kind.value, event.key.task_id) for event in events]
        return [Receipt(seq=event.seq, answer=Answer.TAKEN) for event in events]

    @hookimpl
    async def serve(self, agent: AgentHandle) -> None:
        self.agent = agent
        self.serving.set()
        await self.end


class BrokenStore(Resident):
    @hookimpl
    async def store(self) -> Any:
        raise RuntimeError("the disk is gone")
