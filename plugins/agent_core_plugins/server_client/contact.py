"""Contact with the server: register, heartbeat, and each loss and return of it said once."""

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from agent_core import (
    AgentHandle,
    Backoff,
    Clock,
    Code,
    Instant,
    Json,
    Signal,
    Unreachable,
    __version__,
    wire,
)
from agent_core_plugins.server_client.http import Reply, Server
from agent_core_plugins.server_client.machine import has, metrics, own_address

LEASE_SEC = 300.0  # of a server that does not say
SPOKEN = tuple(wire.Word)  # the extensions that we know
EVENTS_LIMIT = 100  # in one request, at most
BYTES_LIMIT = 8 * 2**20  # of one request, at most
BYTES_LEAST = 4096  # a server that names less means something else
State = Literal["unknown", "here", "away", "refused"]


class Limits(NamedTuple):
    """What the server takes in one batch of events."""

    events: int = EVENTS_LIMIT
    bytes: int = BYTES_LIMIT


class Contact:
    """Makes every call, and knows from its answers how things stand with the server."""

    def __init__(
        self, server: Server, *, url: str, agent_id: str, machine_id: str, clock: Clock, log: Any
    ) -> None:
        self.identity = {"agent_id": agent_id, "machine_id": machine_id}
        self.capabilities: frozenset[str] | None = None  # None: a server that knows no such word
        self.limits = Limits()
        self.lease_sec = LEASE_SEC
        self.known = asyncio.Event()  # set when register was answered for the first time
        self.registers = Signal()  # sent each time that it was: the words may be others
        self.back_since: Instant | None = None  # until the results of the outage are told
        self.state: State = "unknown"
        self.hear: Callable[[Json], bool] = _deaf  # what is done with the commands of an answer
        self._server = server
        self._url = url
        self._clock = clock
        self._log = log
        self._registered = False
        self._doubtful = False  # a word of its answer proved untrue
        self._untrue: set[wire.Word] = set()  # those that ever did
        self._registering = asyncio.Lock()
        self._listening: list[asyncio.Event] = []
        self._named: frozenset[str] | None = None  # the words of the last register's answer
        self._told: Json = None  # what the machine has, as the last register said it

    def speaks(self, word: wire.Word) -> bool:
        """Whether both sides know this extension now; it may change with each register."""
        return self.capabilities is not None and word in self.capabilities

    def unlearn(self, word: wire.Word) -> None:
        """The server named the word and has no such route: do without, ask again later."""
        if self.capabilities is None or word not in self.capabilities:
            return  # said already, by a call beside this one
        self.capabilities -= {word}
        self._doubtful = True
        if word not in self._untrue:
            self._log.warning(
                "the server names an extension that it has not; doing without",
                extension=word.value,
            )
        self._untrue.add(word)

    def returns(self) -> asyncio.Event:
        """For one loop to wait for: set when the server is back after an outage.

        Its own to clear: a loop that is busy must neither miss it nor keep it set for another.
        """
        self._listening.append(asyncio.Event())
        return self._listening[-1]

    async def call(self, path: str, *, patience: float = 0.0, **fields: Json) -> Reply:
        """One call; raises Unreachable. A refused token is an answer, code 30012.

        `patience` is what the server may take for it beyond the time that it always has.
        """
        body = {"agent_id": self.identity["agent_id"], **fields}
        return await self._judged(path, body, patience)

    async def send(self, path: str, content: bytes) -> Reply:
        """As `call`, of a body that is JSON already."""
        return await self._judged(path, content)

    async def _judged(self, path: str, body: Json, patience: float = 0.0) -> Reply:
        try:
            reply = await self._server.call(f"/api/v1/agent/{path}", body, patience)
        except Unreachable as error:
            self._note("away", str(error))
            raise
        if reply.code == Code.NOT_AUTHORISED:
            self._note("refused", reply.message)
        else:
            self._note("here", "")
        return reply

    async def registered(self, agent: AgentHandle) -> None:
        """Register unless that was done since the last outage. Raises Unreachable."""
        if self._registered:
            return
        async with self._registering:
            if not self._registered:
                await self._register(agent)

    async def keep(self, agent: AgentHandle, interval: float) -> None:
        """Register and heartbeat for as long as the agent lives."""
        backoff = Backoff()
        returned = self.returns()
        while True:
            returned.clear()
            try:
                await self.registered(agent)
                await self._heartbeat(agent)
                backoff.reset()
                delay = interval
            except Unreachable as error:
                delay = backoff.next(error.retry_after)
            await first(self._clock.sleep(delay), returned.wait())
            if self._doubtful:
                self._doubtful = self._registered = False

    async def _register(self, agent: AgentHandle) -> None:
        machine = has(await agent.inventory())
        reply = await self.call(
            "register",
            machine_id=self.identity["machine_id"],
            version=__version__,
            hostname=socket.gethostname(),
            ip_address=await asyncio.to_thread(own_address, self._url),
            max_workers=agent.max_workers,
            labels=dict(agent.labels),
            executors=list(agent.executors),
            **machine,
            capabilities=list(SPOKEN),
        )
        self._must_be_answer(reply, "register")
        if reply.code not in {Code.OK, Code.NO_ROUTE}:
            self._log.warning("the server does not register this agent", reason=reply.message)
        data = reply.data if reply.code == Code.OK and isinstance(reply.data, Mapping) else {}
        self.capabilities = self._named = _words(data)
        self.limits = _limits(data.get("limits"))
        self.lease_sec = seconds(data.get("lease_sec"), LEASE_SEC)
        self._registered = True
        self._told = machine
        self.known.set()
        self.registers.send()

    async def _heartbeat(self, agent: AgentHandle) -> None:
        inventory = await agent.inventory()
        if has(inventory) != self._told:  # a device fell off or came back
            self._registered = False
            await self.registered(agent)
        reply = await self.call(
            "heartbeat", machine_id=self.identity["machine_id"], metrics=metrics(inventory)
        )
        self._must_be_answer(reply, "heartbeat")
        if reply.code != Code.OK:
            self._log.warning("the server refuses a heartbeat", reason=reply.message)
        self.heard(reply)
        named = _words(reply.data)
        if named is not None and named != self._named:  # it was started anew, or forgot this agent
            self._registered = False
            await self.registered(agent)

    def heard(self, reply: Reply) -> bool:
        """Commands come in any answer that may carry them. True if there was a new one."""
        commands = reply.data.get("commands") if isinstance(reply.data, Mapping) else None
        return bool(commands) and self.hear(commands)

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


def _words(data: Json) -> frozenset[str] | None:
    """The extensions that an answer names, if it is one that names them."""
    words = data.get("capabilities") if isinstance(data, Mapping) else None
    if not isinstance(words, list):
        return None
    return frozenset(word for word in words if isinstance(word, str))


def _limits(given: Json) -> Limits:
    if not isinstance(given, Mapping):
        return Limits()
    return Limits(
        events=_bounded(given.get("events"), 1, EVENTS_LIMIT),
        bytes=_bounded(given.get("bytes"), BYTES_LEAST, BYTES_LIMIT),
    )


def _bounded(value: Json, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        return most
    return min(value, most)


def _deaf(_commands: Json) -> bool:
    """A server that was not asked for commands gives none."""
    return False
