"""An HTTP server on a real socket that answers from a script, also as no server should."""

import asyncio
import contextlib
import json
import socket
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from agent_core.api.wire import Json, envelope

KEPT = 10_000  # requests on record, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a client sent."""

    method: str
    path: str  # with the query
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Json:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the server sends, and how it misbehaves while sending it."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None  # a Content-Length that is not the body's
    raw: bytes | None = None  # sent as it is, instead of everything above
    gate: asyncio.Event | None = None  # the answer waits for it
    pause_at: int | None = None  # with gate: that many bytes go out before the wait
    close: bool = False  # the connection ends after the answer
    reset: bool = False  # it ends with a reset: after the answer, or in place of an empty raw


# What a script holds; an awaited one lets the request hang until it is told what to answer.
Answering = Reply | Callable[[Request], Reply | Awaitable[Reply]]


def answer(data: Json = None, *, code: int = 0, message: str = "", status: int = 200) -> Reply:
    """The envelope of our control plane."""
    return as_json(envelope(data, code=code, message=message), status=status)


def as_json(body: Json, *, status: int = 200) -> Reply:
    return Reply(
        status=status, body=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )


NOT_FOUND = Reply(
    status=404, body=b"404 page not found", headers={"Content-Type": "text/plain"}, close=False
)


class ScriptedServer:
    """`async with ScriptedServer() as server`: answers by path, keeps what was asked.

    A path's script is used up answer by answer, and the last one stays. A path without a script
    is answered 404 in plain text.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.url = ""
        self._scripts: defaultdict[str, list[Answering]] = defaultdict(list)
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._handlers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._port = 0

    def on(self, path: str, *answers: Answering) -> None:
        """From now on `path` is answered so; `*` stands for one segment of it."""
        self._scripts[path] = list(answers)

    def asked(self, path: str) -> list[Request]:
        """The requests of one path so far; `*` stands for one segment."""
        return [request for request in self.requests if _fits(path, request.path)]

    async def wait_for(self, path: str, count: int = 1) -> list[Request]:
        """Returns when `path` was asked that often."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.asked(path)) >= count)
        return self.asked(path)

    async def start(self) -> None:
        """Listen; after a `stop` on the same port as before."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Close port and connections: from now on they are refused."""
        if self._server is None:
            return
        # Accept no more, and let what was accepted become a connection: a server that is closed in
        # between leaves that socket open for ever.
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(10):
            await asyncio.sleep(0)
        self._server.close()
        handlers = dict(self._handlers)
        for handler, writer in handlers.items():
            handler.cancel()
            writer.close()  # a handler that had not even begun closes nothing
        await asyncio.gather(*handlers, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> "ScriptedServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.create_task(self._serve(reader, writer))
        self._handlers[handler] = writer
        handler.add_done_callback(lambda done: self._handlers.pop(done, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                while True:
                    request = await _read(reader)
                    async with self._arrived:
                        self.requests = [*self.requests[-KEPT:], request]
                        self._arrived.notify_all()
                    reply = self._answer(request)
                    if not isinstance(reply, Reply):
                        reply = await reply
                    await _send(writer, reply)
                    if reply.close or reply.reset:
                        break
            finally:
                writer.close()
                await writer.wait_closed()

    def _answer(self, request: Request) -> Reply | Awaitable[Reply]:
        for pattern, script in self._scripts.items():
            if script and _fits(pattern, request.path):
                chosen = script.pop(0) if len(script) > 1 else script[0]
                return chosen if isinstance(chosen, Reply) else chosen(request)
        return NOT_FOUND


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method=method, path=path, headers=headers, body=body)


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    data = _bytes(reply) if reply.raw is None else reply.raw
    sent = 0
    if reply.gate is not None:
        sent = reply.pause_at or 0
        writer.write(data[:sent])
        await writer.drain()
        await reply.gate.wait()
    writer.write(data[sent:])
    await writer.drain()
    if reply.reset:
        connection = writer.get_extra_info("socket")
        # No lingering: the kernel sends a reset instead of a farewell.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _bytes(reply: Reply) -> bytes:
    length = len(reply.body) if reply.length is None else reply.length
    lines = [f"HTTP/1.1 {reply.status} Scripted", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    if reply.close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body


def _fits(pattern: str, path: str) -> bool:
    wanted, given = pattern.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        a in {"*", b} for a, b in zip(wanted, given, strict=True)
    )
