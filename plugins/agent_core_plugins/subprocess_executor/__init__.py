"""The plugin `subprocess_executor`: runs tasks as processes that outlive the agent.

A small supervisor (the package `supervisor` beside this file) starts and watches them; this side
asks it, and finds every run again after the agent was killed or restarted.
"""

import asyncio
import os
from collections.abc import Awaitable, Mapping
from typing import Any

from pydantic import Field

from agent_core import (
    AgentHandle,
    Duration,
    Execution,
    Launch,
    Lost,
    NeverStarted,
    PluginContext,
    PluginError,
    Section,
    Status,
    hookimpl,
)

from .environment import NAMES, passed_through
from .execution import SubprocessExecution, Tools
from .house import House
from .known import Known, Line
from .orphan import Orphan, look_for
from .silence import attend
from .starting import Start, Starter

RECONNECT = 1.0  # seconds between two tries to reach a supervisor while nothing is to be started
UNENDED = (Status.ASSIGNED, Status.RUNNING, Status.SUSPENDED)
PAGE = 1000


class SubprocessSettings(Section):
    """How tasks run as processes of this machine."""

    max_output_size: int = Field(1024 * 1024, ge=1024, le=16 * 1024 * 1024)
    """Bytes kept of each of stdout and stderr: the first half and the last half of them."""
    grace: Duration = 10.0
    """How long a task may take to end after SIGTERM, before SIGKILL."""
    environment: tuple[str, ...] = Field(NAMES, max_length=256)
    """Names passed from the agent's environment to every task; `*` and `?` stand for more."""


class SubprocessExecutor:
    """Takes every task."""

    Settings = SubprocessSettings
    api_versions = frozenset({1})

    def __init__(self, settings: SubprocessSettings, context: PluginContext) -> None:
        self._settings = settings
        self._context = context
        site = passed_through(settings.environment, os.environ)
        output = context.state_dir / "output"
        try:
            output.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise PluginError(f"output cannot be kept in {output}: {error.strerror}") from error
        self._house = House(context, site)
        self._tools = Tools(
            house=self._house, clock=context.clock, output=output, grace=settings.grace
        )
        self._starter = Starter(tools=self._tools, cap=settings.max_output_size, path=site["PATH"])

    @hookimpl
    def execute(self, launch: Launch) -> Awaitable[Execution] | None:
        return Start(self._starter, launch)

    @hookimpl
    async def reattach(self, launch: Launch, running: bool) -> Execution | NeverStarted | Lost:
        """The supervisor's word if it lives, its journal's if not, the process's own if it runs."""
        began = launch.stored_at
        handle = launch.handle
        boot_id = handle.get("boot") or (began.boot_id if began else "")
        if boot_id and boot_id != self._context.clock.boot_id:
            return Lost(reason="the machine was rebooted")
        known = await self._house.find(launch.start_id)
        if known is not None:
            return await self._starter.found(launch.start_id, known)
        if not running and began is not None and self._house.was_there_before(began.boottime):
            return NeverStarted()
        clock = self._context.clock
        facts = _facts(handle) or await look_for(launch.start_id, clock)
        if facts is not None and Orphan(launch.start_id, facts, clock).left():
            place = str(handle.get("place", ""))
            known = Known(place=place, journal_id="", facts=facts)
            return SubprocessExecution(self._tools, launch.start_id, known)
        return Lost(reason="the supervisor is gone, and its journal with it")

    @hookimpl
    async def serve(self, agent: AgentHandle) -> None:
        """Keep a supervisor at hand, so that the first task need not wait for one."""
        try:
            context = self._context
            async with asyncio.TaskGroup() as group:
                group.create_task(attend(self._house, context.clock, context.log), name="attend")
                await self._keep_at_hand(agent)
        finally:
            self.close()

    async def _keep_at_hand(self, agent: AgentHandle) -> None:
        tidied, said = False, ""
        while True:
            try:
                link = await self._house.current()
                tidied = tidied or await self._tidy(agent)
                said = ""
                if tidied:
                    await link.closed()
            except OSError as error:
                if said != str(error):
                    self._context.log.warning("no supervisor at hand", why=str(error))
                said = str(error)
            await self._context.clock.sleep(RECONNECT)

    @property
    def supervisor_pid(self) -> int | None:
        """The process that starts new runs, if there is one."""
        return self._house.ready.pid if self._house.ready else None

    def close(self) -> None:
        """Hang up. Whatever runs goes on, and another agent finds it again."""
        self._house.close()

    # --- what is left over

    async def _tidy(self, agent: AgentHandle) -> bool:
        """Let go of what an agent before us had no time to let go of; False if one is away now."""
        if await self._house.survey():
            return False
        ended = self._house.ended()  # first: what begins from now on is not looked at
        kept = os.listdir(self._tools.output)
        wanted = await _unended(agent)
        for link, start_id in ended:
            if start_id not in wanted:
                link.forget(start_id)
        for name in kept:
            start_id = name.rpartition(".")[0]
            if start_id not in wanted and not self._house.knows(start_id):
                (self._tools.output / name).unlink(missing_ok=True)
        self._house.tidy(wanted)
        return True


async def _unended(agent: AgentHandle) -> dict[str, float]:
    """The starts that the store holds without an end, and when they were stored (boot time)."""
    found: dict[str, float] = {}
    after = None
    while page := await agent.tasks(UNENDED, limit=PAGE, after=after):
        after = page[-1].key
        for task in page:
            found[task.start_id] = task.assigned_at.boottime if task.assigned_at else 0.0
    return found


def _facts(handle: Mapping[str, Any]) -> Line | None:
    """The process that a stored handle names, if it names one."""
    if type(handle.get("pid")) is int and type(handle.get("ticks")) is int:
        return dict(handle)
    return None
