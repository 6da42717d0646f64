"""What both HTTP servers share: the quiet uvicorn above all."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from agent_core.api.bodies import Problem, parse_query, validate
from agent_core.api.http import QuietServer, Tokens, dated, listen


async def hello(_request: Request) -> Response:
    return Response("hello")


@contextlib.asynccontextmanager
async def serving(app: Any, **more: Any) -> AsyncIterator[tuple[QuietServer, str]]:
    listener = listen("127.0.0.1", 0)
    server = QuietServer(app, **more)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        await asyncio.wait_for(running, 30)


def app(*routes: Route) -> Starlette:
    return Starlette(routes=[Route("/", hello), *routes])


async def test_an_idle_server_wakes_nobody() -> None:
    async with serving(app()) as (_, url), httpx.AsyncClient() as client:
        assert (await client.get(url)).text == "hello"
        await client.aclose()
        await asyncio.sleep(0.3)
        loop: Any = asyncio.get_running_loop()
        # Timers that are due within a second: uvicorn's tick would be one, every 0.1 s.
        soon = [each for each in loop._scheduled if each.when() < loop.time() + 1.0]
        assert [each for each in soon if not each.cancelled()] == []


async def test_it_leaves_the_signal_handlers_alone() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    async with serving(app()) as (_, url), httpx.AsyncClient() as client:
        await client.get(url)
        assert {number: signal.getsignal(number) for number in before} == before
    assert {number: signal.getsignal(number) for number in before} == before


async def test_a_stop_answers_what_is_under_way() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(_request: Request) -> Response:
        asked.set()
        await go.wait()
        return Response("done")

    async with serving(app(Route("/slow", slow))) as (server, url), httpx.AsyncClient() as client:
        answer = asyncio.create_task(client.get(f"{url}/slow"))
        await asked.wait()
        server.stop()
        await asyncio.sleep(0)
        go.set()
        assert (await answer).text == "done"
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_a_second_stop_waits_for_nobody() -> None:
    asked = asyncio.Event()

    async def stuck(_request: Request) -> Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    listener = listen("127.0.0.1", 0)
    server = QuietServer(app(Route("/stuck", stuck)), grace=3600)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    async with httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        answer = asyncio.create_task(client.get(f"{url}/stuck"))
        await asked.wait()
        server.stop()
        server.stop()
        await asyncio.wait_for(running, 30)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
    others = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    for task in others:  # what a process that ends leaves behind
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_whoever_dawdles_beyond_the_grace_is_hung_up_on_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def dawdling(request: Request) -> Response:
        asked.set()
        try:
            await request.body()
        except ClientDisconnect:
            left.set()
        return Response(status_code=499)

    async with serving(app(Route("/", dawdling, methods=["POST"])), grace=0) as (server, url):
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await asked.wait()
        server.stop()
        await left.wait()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
    assert caplog.records == []


async def test_each_answer_carries_our_clocks_date_once() -> None:
    now = [0.0]
    async with (
        serving(dated(app(), lambda: now[0])) as (_, url),
        httpx.AsyncClient() as client,
    ):
        for seconds, date in (
            (0.0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (86400.0, "Fri, 02 Jan 1970 00:00:00 GMT"),
        ):
            now[0] = seconds
            reply = await client.get(url)
            assert reply.headers.get_list("date") == [date]
            assert (await client.get(f"{url}/nothing")).headers.get_list("date") == [date]
            assert "server" not in reply.headers


def test_a_listener_names_its_protocol_or_answers_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
        with pytest.raises(OSError, match="in use"):
            listen("127.0.0.1", listener.getsockname()[1])
    with pytest.raises(socket.gaierror):
        listen("no such host", 0)


def test_no_token_matches_while_none_is_configured() -> None:
    assert not Tokens("").match("")
    assert not Tokens("").match("x")
    assert Tokens("é\udcff").match("é\udcff")
    assert not Tokens("a").match("")


def test_a_problem_has_the_status_of_its_code() -> None:
    from agent_core.api.wire import Code

    assert Problem(Code.FULL, "x").status == 503
    assert Problem(Code.NOT_AUTHORISED, "x", status=403).status == 403


def test_what_was_given_is_shown_and_never_at_length() -> None:
    from pydantic import BaseModel, Field

    class Model(BaseModel):
        number: int = Field(ge=1)
        text: str = Field("", max_length=3)

    with pytest.raises(Problem) as caught:
        validate(Model, {"number": 0, "text": "x" * 10_000})
    assert "number: must be greater than or equal to 1 (given: 0)" in caught.value.message
    assert len(caught.value.message) < 400
    with pytest.raises(Problem, match="number: given twice"):
        parse_query(Model, [("number", "1"), ("number", "2")])
    assert parse_query(Model, [("number", "7"), ("text", "12")]) == Model(number=7, text="12")
