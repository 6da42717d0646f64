"""What both HTTP servers share: the rows of a route table, the door, tokens, a quiet uvicorn."""

import asyncio
import contextlib
import hashlib
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import uvicorn
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_core.api.bodies import Problem, parse_body, parse_query, read_body
from agent_core.api.connection import Connection
from agent_core.api.wire import Code, Json, same_key

HANG_UP = 2.0  # seconds for handlers to see that their clients are gone

__all__ = [
    "Call",
    "Endpoint",
    "Problem",
    "QuietServer",
    "Reply",
    "Tokens",
    "admit",
    "bearer",
    "dated",
    "json_response",
    "listen",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A request that passed the door: its token, its path, its body and query validated."""

    request: Request
    path: Mapping[str, str]
    body: Any = None  # an instance of the endpoint's body model
    query: Any = None  # of its query model


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A success."""

    data: Json = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One row of a route table: what validates a request, who answers it, how it is documented."""

    method: str
    path: str
    handler: Callable[[Call], Awaitable[Reply]]
    summary: str
    guard: Callable[[Request], None]  # raises Problem for a request without the right token
    schemes: Sequence[str] = ()  # security schemes, any of which will do; none = open to all
    tag: str = ""
    body: type[BaseModel] | None = None
    body_optional: bool = False  # an empty body stands for {}
    body_limit: int = 0  # bytes
    query: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None  # of `data`; for the document and the tests
    status: int = 200
    headers: Sequence[str] = ()  # request headers that it reads, for the document
    refusals: Sequence[Code] = ()  # beyond those that every endpoint has


async def admit(endpoint: Endpoint, request: Request) -> Call:
    """Token first, so that a stranger costs nothing; then query and body. Raises Problem."""
    endpoint.guard(request)
    query = endpoint.query and parse_query(endpoint.query, request.query_params.multi_items())
    body: BaseModel | None = None
    if endpoint.body is not None:
        raw = await read_body(request, endpoint.body_limit)
        if not raw.strip() and endpoint.body_optional:
            raw = b"{}"
        body = parse_body(endpoint.body, raw)
    return Call(request=request, path=request.path_params, body=body, query=query)


class Tokens:
    """Whether a request carries a token, told without telling how much of it was right."""

    def __init__(self, expected: str) -> None:
        self._digest = hashlib.sha256(same_key(expected)).digest() if expected else None

    def match(self, given: str) -> bool:
        """False for everybody while no token is configured."""
        offered = hashlib.sha256(same_key(given)).digest()
        return self._digest is not None and hmac.compare_digest(offered, self._digest)


def bearer(request: Request) -> str:
    """The token of `Authorization: Bearer TOKEN`, "" without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def json_response(body: Json, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(body), status, dict(headers or {}), "application/json")


def dated(app: ASGIApp, wall: Callable[[], float]) -> ASGIApp:
    """The app with our clock's Date on every answer: agents measure by it how far theirs is off."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def stamp(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["date"] = formatdate(wall(), usegmt=True)
            await send(message)

        await app(scope, receive, stamp)

    return serve


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 = one that is free. Raises OSError, gaierror for a bad host."""
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # With the protocol named: asyncio turns Nagle off only then, and an answer whose head and
    # body are two writes would else wait 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # here: two can bind one port so, but not both listen
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


class QuietServer(uvicorn.Server):
    """uvicorn without its 0.1 s tick, which alone takes 0.28 % of a core, and without its handlers.

    Whoever runs it owns the signals and calls `stop`, a second time to leave at once.
    """

    def __init__(
        self, app: Any, *, grace: int = 10, on_stop: Callable[[], None] | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,  # refreshed by that tick; `dated` gives ours
                timeout_keep_alive=75,
            )
        )
        self._grace = grace  # seconds
        self._on_stop = on_stop  # answers whatever hangs
        self._stop = asyncio.Event()

    async def main_loop(self) -> None:
        await self._stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Answer what is under way, then end; what takes longer than the grace is hung up on."""
        if self._stop.is_set():
            self.force_exit = True
            return
        asyncio.get_running_loop().call_later(self._grace, self.stop)
        self.should_exit = True
        self._stop.set()
        if self._on_stop is not None:
            self._on_stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn would leave at once, or cancel each handler, with a traceback for every one."""
        await super().shutdown(sockets)
        if not self.force_exit:
            return
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()  # a client that left: that is what handlers see
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP):
                await asyncio.gather(*self.server_state.tasks, return_exceptions=True)
                await self.lifespan.shutdown()
