"""A server with a script, an agent in memory, and the plugin between them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from agent_core import Clock, PluginContext
from agent_core.clock import SystemClock
from agent_core.testing.agent import MemoryAgent
from agent_core.testing.http_server import ScriptedServer, answer
from agent_core_plugins.server_client import ServerClient, ServerClientSettings

REGISTERED = answer({"capabilities": [], "lease_sec": 300, "limits": {}, "time": 0})
TOKEN = "agent-token"


@dataclass
class Site:
    server: ScriptedServer
    agent: MemoryAgent
    client: ServerClient
    capture: LogCapture
    clock: Clock

    def said(self, level: str) -> list[str]:
        return [entry["event"] for entry in self.capture.entries if entry["log_level"] == level]


Opening = Callable[..., AbstractAsyncContextManager[Site]]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        server.on("/api/v1/agent/register", REGISTERED)
        server.on("/api/v1/agent/heartbeat", answer({"status": "ok"}))
        yield server


@pytest.fixture
def opened(server: ScriptedServer, tmp_path: Path) -> Opening:
    """`async with opened(timeout=…) as site`: a served plugin with these settings."""

    @contextlib.asynccontextmanager
    async def open_site(clock: Clock | None = None, **settings: object) -> AsyncIterator[Site]:
        capture = LogCapture()
        clock = clock or SystemClock()
        context = PluginContext(
            agent_id="agent-1",
            machine_id="machine-1",
            state_dir=tmp_path,
            runtime_dir=tmp_path,
            max_workers=2,
            clock=clock,
            log=structlog.wrap_logger(None, processors=[capture]),
        )
        given = {"url": server.url, "token": TOKEN, **settings}
        client = ServerClient(ServerClientSettings.model_validate(given), context)
        agent = MemoryAgent(reporter=client.report)
        serving = asyncio.create_task(client.serve(agent))
        try:
            yield Site(server, agent, client, capture, clock)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        assert serving.cancelled(), serving.exception()

    return open_site
