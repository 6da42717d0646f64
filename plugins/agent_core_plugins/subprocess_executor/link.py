"""The agent's end of one supervisor's socket: hello, requests, answers, ends."""

import asyncio
import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .supervisor.journal import VERSION, encode

Line = dict[str, Any]
HELLO_TIMEOUT = 10.0  # seconds until a supervisor that says nothing counts as away for now
NO_ENV: Mapping[str, str] = MappingProxyType({})
LINE_LIMIT = 8 * 1024 * 1024  # bytes of one request, the supervisor's own bound
INBOX = 65536  # bytes that are read at once


class LinkLost(ConnectionError):
    """The supervisor hung up, or is gone; what was asked may or may not have been done."""


class Strange(Exception):
    """Whoever answers on that socket is not our supervisor."""


@dataclass(kw_only=True, slots=True)
class Tracked:
    """A run as this link's supervisor has told it."""

    facts: Line
    end: Line | None = None


class Link(asyncio.BufferedProtocol):
    """One connection. Its runs stay readable after it was lost.

    What is asked in one turn of the event loop leaves in one write.
    """

    def __init__(self, place: str, journal_id: str) -> None:
        self.place = place  # the directory's name
        self.journal_id = journal_id
        self.pid = 0  # of the supervisor
        self.runs: dict[str, Tracked] = {}
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[Line] = self._loop.create_future()
        self.unanswered: set[str] = set()  # starts that were sent, and may come about at any time
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._starts: dict[str, asyncio.Future[Line]] = {}
        self._signals: dict[int, asyncio.Future[bool]] = {}
        self._ends: dict[str, set[asyncio.Future[None]]] = {}
        self._forgotten: list[str] = []
        self._outgoing: list[bytes] = []
        self._numbers = count(1)
        self._inbox = memoryview(bytearray(INBOX))
        self._rest = b""  # of a line that has not come whole
        self._transport: asyncio.Transport | None = None

    # --- what the executor asks

    async def start(self, start_id: str, request: bytes) -> Line:
        """Have a run started; the supervisor's `started` or `never`. Raises LinkLost.

        `request` is the line that asks for it. There is no time limit: giving up on an answer would
        leave a run that nobody knows of.
        """
        answer: asyncio.Future[Line] = self._loop.create_future()
        self._starts[start_id] = answer
        try:
            self._send(request)
            self.unanswered.add(start_id)
            return await answer
        finally:
            self._starts.pop(start_id, None)

    async def signal(self, start_id: str, signum: int) -> bool:
        """Signal a run's tree. False if its main process had ended by itself. Raises LinkLost."""
        number = next(self._numbers)
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._signals[number] = answer
        try:
            self._send(encode({"t": "signal", "s": start_id, "signal": signum, "n": number}))
            return await answer
        finally:
            self._signals.pop(number, None)

    async def ended(self, start_id: str) -> Line | None:
        """A run's end, when it comes. None: this link was lost, or never knew the run."""
        while (run := self.runs.get(start_id)) and run.end is None and not self.lost:
            waiter: asyncio.Future[None] = self._loop.create_future()
            waiters = self._ends.setdefault(start_id, set())
            waiters.add(waiter)
            try:
                await waiter
            finally:
                waiters.discard(waiter)
        return run.end if run else None

    def forget(self, start_id: str) -> None:
        """Let the supervisor let go of a run; told together with others of the same moment."""
        self.runs.pop(start_id, None)
        self._ends.pop(start_id, None)
        self._forgotten.append(start_id)
        self._flush_soon()

    async def closed(self) -> None:
        """Returns when the link was lost."""
        await asyncio.shield(self._closed)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send(self, line: bytes) -> None:
        if self.lost or self._transport is None:
            raise LinkLost("the supervisor is gone")
        self._outgoing.append(line)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if len(self._outgoing) + len(self._forgotten) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        lines, self._outgoing = self._outgoing, []
        forgotten, self._forgotten = self._forgotten, []
        if forgotten:
            lines.append(encode({"t": "forget", "s": forgotten}))
        if not self.lost and self._transport is not None:
            self._transport.write(b"".join(lines))

    # --- what the supervisor says

    async def greet(self, env: Mapping[str, str]) -> None:
        """Say hello and take in what the supervisor knows. `env` is the base of every start's.

        Raises LinkLost, Strange, TimeoutError.
        """
        self._send(encode({"t": "hello", "v": VERSION, "env": dict(env)}))
        async with asyncio.timeout(HELLO_TIMEOUT):
            answer = await self._hello
        if answer.get("v") != VERSION or answer.get("journal") != self.journal_id:
            raise Strange(
                f"a supervisor of protocol version {answer.get('v')} answers where one of"
                f" version {VERSION} was started; let its tasks end, or stop it"
            )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "a unix stream"
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox

    def buffer_updated(self, nbytes: int) -> None:
        whole, newline, rest = bytes(self._inbox[:nbytes]).rpartition(b"\n")
        if not newline:
            self._rest += rest
            return
        lines, self._rest = self._rest + whole, rest
        for line in json.loads(b"[%s]" % lines.replace(b"\n", b",")):
            self._take(line)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._inbox = memoryview(b"")
        _resolve(self._closed, None)
        waiting: list[asyncio.Future[Any]] = [*self._starts.values(), *self._signals.values()]
        for future in (self._hello, *waiting):
            if not future.done():
                future.set_exception(LinkLost("the supervisor hung up"))
        if not self._hello.cancelled():
            self._hello.exception()  # seen, also if nobody waits any more
        for start_id in tuple(self._ends):
            self._wake(start_id)

    def _take(self, line: Line) -> None:
        kind = line["t"]
        if kind == "end":
            run = self.runs.get(line["s"])
            if run is not None:
                run.end = line["end"]
                self._wake(line["s"])
        elif kind in ("started", "never"):
            if kind == "started":
                self.runs.setdefault(line["s"], Tracked(facts=line, end=line.get("end")))
            self.unanswered.discard(line["s"])
            _resolve(self._starts.get(line["s"]), line)
        elif kind == "signalled":
            _resolve(self._signals.get(line["n"]), line["done"])
        elif kind == "hello":
            # Now, not when whoever greeted goes on: an end may stand in the very next line.
            self.pid = line["pid"]
            for facts in line["runs"]:
                self.runs[facts["s"]] = Tracked(facts=facts, end=facts.get("end"))
            _resolve(self._hello, line)

    def _wake(self, start_id: str) -> None:
        for waiter in self._ends.pop(start_id, ()):
            _resolve(waiter, None)


async def connect(directory: Path, journal_id: str, env: Mapping[str, str] = NO_ENV) -> Link:
    """Connect to the supervisor of a directory and greet it.

    Raises ConnectionRefusedError or FileNotFoundError if there is none, and LinkLost, TimeoutError
    or Strange if there is one that does not answer as it should.
    """
    loop = asyncio.get_running_loop()
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # A unix socket's connect never waits: it is there, full, or not.
        peer.connect(f"{directory}/socket")
        user = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if user != os.geteuid():
            raise Strange(f"{directory} is served by user {user}; remove it and start again")
        _, link = await loop.create_unix_connection(
            lambda: Link(directory.name, journal_id), sock=peer
        )
    except BaseException:
        peer.close()
        raise
    try:
        await link.greet(env)
    except BaseException:
        link.close()
        raise
    return link


def _resolve(future: asyncio.Future[Any] | None, value: object) -> None:
    if future is not None and not future.done():
        future.set_result(value)
