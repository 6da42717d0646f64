"""Contact with the server: register, heartbeat, and each loss and return of it said once."""

import asyncio
import math
import socket
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from agent_core import (
    AgentHandle,
    Backoff,
    Clock,
    Code,
    Gpu,
    Instant,
    Inventory,
    Json,
    Unreachable,
    __version__,
)
from agent_core_plugins.server_client.http import Reply, Server

LEASE_SEC = 300.0  # of a server that does not say
State = Literal["unknown", "here", "away", "refused"]


class Contact:
    """Makes every call, and knows from its answers how things stand with the server."""

    def __init__(
        self, server: Server, *, url: str, agent_id: str, machine_id: str, clock: Clock, log: Any
    ) -> None:
        self.identity = {"agent_id": agent_id, "machine_id": machine_id}
        self.capabilities: frozenset[str] | None = None  # None: a server that knows no such word
        self.lease_sec = LEASE_SEC
        self.known = asyncio.Event()  # set when register was answered for the first time
        self.back_since: Instant | None = None  # until the results of the outage are told
        self.state: State = "unknown"
        self._server = server
        self._url = url
        self._clock = clock
        self._log = log
        self._registered = False
        self._registering = asyncio.Lock()
        self._listening: list[asyncio.Event] = []

    def returns(self) -> asyncio.Event:
        """For one loop to wait for: set when the server is back after an outage.

        Its own to clear: a loop that is busy must neither miss it nor keep it set for another.
        """
        self._listening.append(asyncio.Event())
        return self._listening[-1]

    async def call(self, path: str, **fields: Json) -> Reply:
        """One call; raises Unreachable. A refused token is an answer, code 30012."""
        body = {"agent_id": self.identity["agent_id"], **fields}
        try:
            reply = await self._server.call(f"/api/v1/agent/{path}", body)
        except Unreachable as error:
            self._note("away", str(error))
            raise
        if reply.code == Code.NOT_AUTHORISED:
            self._note("refused", reply.message)
        else:
            self._note("here", "")
        return reply

    async def registered(self, max_workers: int) -> None:
        """Register unless that was done since the last outage. Raises Unreachable."""
        async with self._registering:
            if not self._registered:
                await self._register(max_workers)

    async def keep(self, agent: AgentHandle, interval: float) -> None:
        """Register and heartbeat for as long as the agent lives."""
        backoff = Backoff()
        returned = self.returns()
        while True:
            returned.clear()
            try:
                await self.registered(agent.max_workers)
                await self._heartbeat(agent)
                backoff.reset()
                delay = interval
            except Unreachable as error:
                delay = backoff.next(error.retry_after)
            await first(self._clock.sleep(delay), returned.wait())

    async def _register(self, max_workers: int) -> None:
        reply = await self.call(
            "register",
            machine_id=self.identity["machine_id"],
            version=__version__,
            hostname=socket.gethostname(),
            ip_address=await asyncio.to_thread(own_address, self._url),
            max_workers=max_workers,
            capabilities=[],
        )
        self._must_be_answer(reply, "register")
        if reply.code not in {Code.OK, Code.NO_ROUTE}:
            self._log.warning("the server does not register this agent", reason=reply.message)
        data = reply.data if reply.code == Code.OK and isinstance(reply.data, Mapping) else {}
        words = data.get("capabilities")
        self.capabilities = None
        if isinstance(words, list):
            self.capabilities = frozenset(word for word in words if isinstance(word, str))
        self.lease_sec = seconds(data.get("lease_sec"), LEASE_SEC)
        self._registered = True
        self.known.set()

    async def _heartbeat(self, agent: AgentHandle) -> None:
        reply = await self.call(
            "heartbeat",
            machine_id=self.identity["machine_id"],
            metrics=metrics(await agent.inventory()),
        )
        self._must_be_answer(reply, "heartbeat")
        if reply.code != Code.OK:
            self._log.warning("the server refuses a heartbeat", reason=reply.message)

    def _must_be_answer(self, reply: Reply, what: str) -> None:
        if reply.code == Code.NOT_AUTHORISED:
            raise Unreachable(f"the server refuses this agent's token: {reply.message}")
        if reply.code in {Code.FULL, Code.INTERNAL, 500}:
            raise Unreachable(
                f"{what} answered {reply.code}: {reply.message}", retry_after=reply.retry_after
            )

    def _note(self, state: State, words: str) -> None:
        before, self.state = self.state, state
        if before == state:
            return
        if state == "here":
            if before != "unknown":
                self._log.info("the server is back", url=self._url)
                for each in self._listening:
                    each.set()
                self.back_since = Instant.now(self._clock)
            return
        self._registered = False
        if state == "away":
            self._log.warning(
                "the server is unreachable, work goes on and it is asked again",
                url=self._url,
                reason=words,
            )
        else:
            self._log.error(
                "the server refuses this agent's token; tasks are kept. "
                "Set server_client.token to the server's agent token",
                reason=words,
            )


async def first(*waits: Any) -> None:
    """Return when the first of these is done; the others are cancelled and awaited."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def seconds(value: Json, default: float) -> float:
    """A duration that a server told, if it is one that can be lived with."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 86400 * 7:
        return float(value)
    return default


def own_address(url: str) -> str:
    """The address of this machine as the server's network sees it; "" if there is no way there."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing: it only asks the routing table
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def metrics(inventory: Inventory) -> dict[str, Json]:
    """The heartbeat's metrics; what cannot be read is left out, never faked."""
    found = {
        "cpu_usage_percent": _percent(inventory.cpu_percent),
        "memory_usage_percent": _percent(inventory.memory_percent),
        "memory_used_gb": _whole(inventory.memory_used, 2**30),
        "disk_usage_percent": _percent(inventory.disk_percent),
        "disk_used_gb": _whole(inventory.disk_used, 2**30),
        "gpu_metrics": [_gpu(gpu) for gpu in inventory.gpus] or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _gpu(gpu: Gpu) -> dict[str, Json]:
    found = {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "util_percent": gpu.util_percent,
        "memory_used_mb": _whole(gpu.memory_used, 2**20),
        "memory_total_mb": _whole(gpu.memory_total, 2**20),
        "temperature_c": gpu.temperature,
        "power_usage_w": _whole(gpu.power, 1),  # whole: a decoder of integers takes it too
    }
    return {name: value for name, value in found.items() if value is not None}


def _percent(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(min(max(value, 0.0), 100.0), 1)


def _whole(value: float | None, unit: int) -> int | None:
    return None if value is None or not math.isfinite(value) else round(value / unit)
