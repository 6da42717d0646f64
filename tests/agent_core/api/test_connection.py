"""What somebody without a token can have a server hold, and for how long."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent_core.api import connection
from agent_core.api.http import QuietServer, listen

PIECE = 32 * 1024
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def length(request: Request) -> Response:
    return Response(str(len(await request.body())))


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[int]:
    listener = listen("127.0.0.1", 0)
    server = QuietServer(Starlette(routes=[Route("/", length, methods=["GET", "POST"])]))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.stop()
        await asyncio.wait_for(running, 30)


async def pour(port: int, begin: bytes, piece: bytes, pieces: int) -> bytes:
    """All that comes back for a beginning and ever more of the same."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.read())
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(begin)
            for _ in range(pieces):
                writer.write(piece)
                await writer.drain()
        return await asyncio.wait_for(answer, 30)
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (HEAD + b"X-Endless: ", b"a" * PIECE),
        (HEAD, b"X-Many: aaaaaaaaaaaaaaaaaaaaaaa\r\n" * (PIECE // 33)),
        (b"GET /", b"a" * PIECE),
        (HEAD + b"\r\n" + HEAD + b"X-Second: ", b"a" * PIECE),
    ],
    ids=["one header", "many headers", "the line", "a later request"],
)
async def test_a_head_without_end_is_hung_up_on(begin: bytes, piece: bytes) -> None:
    async with serving() as port:
        answer = await pour(port, begin, piece, 2000)
    assert answer == b"reset" or b" 400 " in answer


async def test_trailers_without_end_are_hung_up_on() -> None:
    begin = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: "
    async with serving() as port:
        answer = await pour(port, begin, b"a" * PIECE, 2000)
    assert answer in (b"", b"reset")


async def test_a_head_just_within_the_limit_and_bodies_beyond_it_are_taken() -> None:
    async with serving() as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b"a" * PIECE

        for _ in range(2):  # over one connection
            long = {"X-Long": "a" * (connection.HEAD_LIMIT - 1000)}
            assert (await client.get("/", headers=long)).text == "0"
            assert (await client.post("/", content=pieces())).text == str(40 * PIECE)
            assert (await client.post("/", content=b"a" * 999_999)).text == "999999"


@pytest.mark.parametrize("sent", [b"", HEAD, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD])
async def test_whoever_never_ends_a_head_is_hung_up_on(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIME", 0.2)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 30)
        assert answer.count(b" 200 ") == sent.count(b"\r\n\r\n")
        writer.close()


async def test_a_body_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIME", 0.1)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\na"
        )
        await asyncio.sleep(0.5)
        writer.write(b"b")
        assert (await asyncio.wait_for(reader.read(), 30)).endswith(b"\r\n\r\n2")
        writer.close()


async def test_a_wish_for_websockets_leaves_no_advice_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wish = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + wish)
        assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        writer.close()
    assert caplog.records == []
