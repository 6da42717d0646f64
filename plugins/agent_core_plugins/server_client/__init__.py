"""The plugin that works for a control plane: brings its tasks, keeps their leases, reports."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from agent_core import (
    AgentHandle,
    Claim,
    Demand,
    Duration,
    Event,
    PluginContext,
    Receipt,
    SecretText,
    Section,
    Text,
    Unreachable,
    hookimpl,
)
from agent_core_plugins.server_client.claiming import Claimer
from agent_core_plugins.server_client.commands import Commands
from agent_core_plugins.server_client.contact import Contact
from agent_core_plugins.server_client.courier import Courier
from agent_core_plugins.server_client.http import Server
from agent_core_plugins.server_client.leases import Leases
from agent_core_plugins.server_client.logs import Logs
from agent_core_plugins.server_client.progress import ProgressLoop
from agent_core_plugins.server_client.reporting import Reporter

NAME = "server_client"

Interval = Annotated[Duration, Field(ge=0.05, le=86400)]


class ServerClientSettings(Section):
    """Where the server is, and how often it is asked."""

    url: Text = ""
    """Address of the server, such as https://gpu.example.com:8080; empty: an agent without one."""
    token: SecretText = ""
    """The server's agent token."""
    timeout: Interval = 30.0
    """How long to wait for a connection, and for each next part of an answer."""
    poll_interval: Interval = 5.0
    """Between two claims when the last one brought nothing and the server lets none wait."""
    wait: Annotated[Duration, Field(ge=0, le=60)] = 30.0
    """How long a claim may wait at a server that lets it; at most a third of the lease. 0: poll."""
    renew_interval: Interval = 60.0
    """Between two renewals of a lease, which also bring cancels; at most a third of the lease."""
    heartbeat_interval: Interval = 30.0
    """Between two heartbeats, which carry the machine's metrics."""
    batch_size: int = Field(10, ge=1, le=100)
    """Tasks that one claim asks for, at most, of a server that takes no batches; else 100."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: str) -> str:
        url = url.strip().rstrip("/")
        if not url:
            return url
        try:
            parts = urlsplit(url)
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not re.fullmatch(r"[\x21-\x7e]+", url):
            raise ValueError("an address such as https://gpu.example.com:8080 is needed")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("an address without user, password, ? and # is needed")
        return parts.geturl()  # with its scheme in small letters

    @field_validator("token")
    @classmethod
    def _usable_token(cls, token: str) -> str:
        if not re.fullmatch(r"[\x21-\x7e]*", token):
            raise ValueError("a token is printable ASCII without blanks, on one line")
        return token


class ServerClient:
    """claim, report and serve, behind one pool of connections."""

    Settings = ServerClientSettings

    def __init__(self, settings: ServerClientSettings, context: PluginContext) -> None:
        self._settings = settings
        self._log = log = context.log
        clock = context.clock
        self._agent: AgentHandle | None = None
        self._served = asyncio.Event()
        self._server = Server(
            url=settings.url, token=settings.token, timeout=settings.timeout, clock=clock
        )
        self._contact = Contact(
            self._server,
            url=settings.url,
            agent_id=context.agent_id,
            machine_id=context.machine_id,
            clock=clock,
            log=log,
        )
        self._courier = Courier(self._contact, clock=clock)
        self._leases = Leases(self._contact, self._courier, source=NAME, clock=clock, log=log)
        self._progress = ProgressLoop(
            self._contact, self._courier, self._leases, source=NAME, clock=clock, log=log
        )
        self._logs = Logs(self._contact, source=NAME, clock=clock, log=log)
        self._commands = Commands(
            self._contact, self._courier, self._logs, source=NAME, clock=clock, log=log
        )
        self._contact.hear = self._commands.hear
        self._reporter = Reporter(self._contact, self._courier, self._leases, self._logs, log=log)
        self._claimer = Claimer(
            self._contact,
            self._leases,
            source=NAME,
            batch_size=settings.batch_size,
            poll_interval=settings.poll_interval,
            wait=settings.wait,
            clock=clock,
            log=log,
        )

    @hookimpl
    async def claim(self, demand: Demand) -> Claim:
        """Ask the server for tasks; without a server, wait until the agent stops."""
        agent = await self._handle()
        if not self._settings.url:
            await agent.stopping.wait()
            return Claim(ask_again=self._settings.poll_interval)
        claim = await self._claimer.claim(agent, demand)
        return replace(claim, takes_back=self._claimer.takes_back)

    @hookimpl
    async def report(self, events: Sequence[Event]) -> Sequence[Receipt]:
        """Tell the server what became of its tasks."""
        agent = await self._handle()
        if not self._settings.url:
            raise Unreachable("no server is set: server_client.url is empty")
        return await self._reporter.report(agent, events)

    @hookimpl
    async def serve(self, agent: AgentHandle) -> None:
        """Register, heartbeat, renew and tell progress until the agent ends."""
        self._agent = agent
        self._courier.open(agent.stream)
        self._served.set()
        if not self._settings.url:
            self._log.info("no server is set (server_client.url): this agent brings no work")
            await asyncio.Event().wait()
        loops = {
            "heartbeat": self._contact.keep(agent, self._settings.heartbeat_interval),
            "renew": self._leases.keep(agent, self._settings.renew_interval),
            "progress": self._progress.keep(agent),
            "commands": self._commands.keep(agent),
            "logs": self._logs.keep(agent),
        }
        try:
            async with asyncio.TaskGroup() as group:
                for name, loop in loops.items():
                    group.create_task(loop, name=f"{NAME} {name}")
        finally:
            await self._claimer.close()
            await self._server.close()

    async def _handle(self) -> AgentHandle:
        """What `serve` was given; core starts it beside the claims."""
        await self._served.wait()
        assert self._agent is not None
        return self._agent
