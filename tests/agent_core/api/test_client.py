"""The users' client against a server that also answers as no server should."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent_core.api.client import RETRY_DELAYS, Client
from agent_core.api.wire import Code
from agent_core.errors import Refused, RemoteGPUError, Unreachable
from agent_core.testing.http_server import Reply, Request, ScriptedServer, answer, as_json

TASK = {"id": "t-1", "status": "pending", "name": "one"}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as scripted:
        yield scripted


async def call(server: ScriptedServer, what: Callable[[Client], Any], **options: Any) -> Any:
    """Use a client in a thread, as a command does."""

    def use() -> Any:
        options.setdefault("sleep", lambda _seconds: None)
        with Client(server.url, "secret", **options) as client:
            return what(client)

    return await asyncio.to_thread(use)


async def failure(server: ScriptedServer, reply: Reply, **options: Any) -> RemoteGPUError:
    server.on("/api/v1/tasks/t-1", reply)
    with pytest.raises(RemoteGPUError) as caught:
        await call(server, lambda client: client.task("t-1"), **options)
    return caught.value


async def test_a_task_is_what_data_holds(server: ScriptedServer) -> None:
    server.on("/api/v1/tasks/t-1", answer(TASK))
    assert await call(server, lambda client: client.task("t-1")) == TASK
    assert server.requests[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=502, body=b"<html>Bad Gateway</html>", headers={"Content-Type": "text/html"}),
        Reply(status=200, body=b"<html>Welcome to our Wi-Fi</html>"),
        Reply(status=200, body=b'{"code": 0, "data": {"id": "t-1", "sta'),
        Reply(status=200, body=b""),
        Reply(status=200, body=b"null"),
        Reply(status=200, body=b"[]"),
        Reply(status=200, body=b"404 page not found"),
        Reply(status=200, body=b"[" * 100_000),
        Reply(status=200, body=b"\xff\xfe"),
        as_json({}),
        as_json({"code": "0", "data": TASK}),
        as_json({"code": True, "data": TASK}),
        as_json({"code": False, "data": TASK}),
        as_json({"code": 0, "data": TASK}, status=500),
        as_json({"code": 0, "data": TASK}, status=302),
        answer(None),
        answer([TASK]),
        answer({"id": 1, "status": "pending"}),
        answer({"id": "t-1"}),
        Reply(raw=b"", reset=True),
        Reply(status=200, body=b'{"code": 0', length=500, close=True),
        Reply(raw=b"HTTP/1.1 banana\r\n\r\n", close=True),
        answer(code=Code.NO_ROUTE, status=404),
    ],
)
async def test_what_is_no_answer_is_never_a_success(server: ScriptedServer, reply: Reply) -> None:
    assert isinstance(await failure(server, reply), Unreachable)


async def test_a_redirect_is_told_and_the_token_does_not_follow_it(server: ScriptedServer) -> None:
    target = f"{server.url}/elsewhere"
    error = await failure(server, Reply(status=307, headers={"Location": target}))
    assert isinstance(error, Unreachable)
    assert "points elsewhere" in str(error)
    assert target in str(error)
    assert server.asked("/elsewhere") == []


@pytest.mark.parametrize(
    ("reply", "code", "message"),
    [
        (answer(code=30012, message="the token is wrong", status=401), 30012, "the token is wrong"),
        (answer(code=30004, message="no task t-1", status=404), 30004, "no task t-1"),
        # The body decides, whatever the status says.
        (answer(code=30014, message="conflict", status=200), 30014, "conflict"),
        (as_json({"code": 401, "msg": "gin says so"}), 401, "gin says so"),
        (as_json({"code": 409}), 409, "the server answered code 409"),
    ],
)
async def test_a_business_code_is_a_refusal(
    server: ScriptedServer, reply: Reply, code: int, message: str
) -> None:
    error = await failure(server, reply)
    assert isinstance(error, Refused)
    assert error.business_code == code
    assert str(error) == message


async def test_nobody_listening_is_unreachable(server: ScriptedServer) -> None:
    await server.stop()
    with pytest.raises(Unreachable, match=r"cannot reach http://127.0.0.1:.*refused"):
        await call(server, lambda client: client.task("t-1"))


async def test_a_server_that_does_not_answer_in_time_is_unreachable(server: ScriptedServer) -> None:
    error = await failure(server, Reply(gate=asyncio.Event()), timeout=0.2)
    assert isinstance(error, Unreachable)
    assert "no answer in time" in str(error)


async def test_retry_after_is_handed_on(server: ScriptedServer) -> None:
    error = await failure(server, Reply(status=503, headers={"Retry-After": "7"}, body=b"busy"))
    assert isinstance(error, Unreachable)
    assert error.retry_after == 7


async def test_a_submit_whose_answer_was_lost_is_sent_again_under_the_same_key(
    server: ScriptedServer,
) -> None:
    server.on("/api/v1/tasks", Reply(raw=b"", reset=True), Reply(status=502), answer(TASK))
    assert await call(server, lambda client: client.submit({"command": "true"})) == TASK
    sent = server.asked("/api/v1/tasks")
    keys = {request.headers["idempotency-key"] for request in sent}
    assert len(sent) == 3
    assert len(keys) == 1
    assert {request.body for request in sent} == {b'{"command": "true"}'}


async def test_two_submits_have_two_keys(server: ScriptedServer) -> None:
    server.on("/api/v1/tasks", answer(TASK))
    for _ in range(2):
        await call(server, lambda client: client.submit({"command": "true"}))
    first, second = (request.headers["idempotency-key"] for request in server.requests)
    assert first != second


async def test_a_refused_submit_is_not_sent_again(server: ScriptedServer) -> None:
    server.on("/api/v1/tasks", answer(code=30005, message="priority is 1 to 10", status=400))
    with pytest.raises(Refused, match="priority is 1 to 10"):
        await call(server, lambda client: client.submit({"command": "true"}))
    assert len(server.requests) == 1


async def test_a_submit_gives_up_after_some_tries(server: ScriptedServer) -> None:
    server.on("/api/v1/tasks", answer(code=30013, message="queue full", status=503))
    pauses: list[float] = []
    with pytest.raises(Refused, match="queue full"):
        await call(server, lambda client: client.submit({"command": "x"}), sleep=pauses.append)
    assert pauses == list(RETRY_DELAYS)
    assert len(server.requests) == len(RETRY_DELAYS) + 1


async def test_a_key_that_no_header_can_carry_is_refused_before_anything_is_sent(
    server: ScriptedServer,
) -> None:
    for key in ("", "two\nlines", "é", "x" * 256, " padded "):
        with pytest.raises(Refused, match="idempotency key"):
            await call(server, lambda client, key=key: client.submit({"command": "x"}, key=key))
    assert server.requests == []


@pytest.mark.parametrize("task_id", ["", ".", "..", "../agents", "a/b", "a?b", "a#b", "a\nb", "é"])
async def test_an_id_cannot_lead_to_another_address(server: ScriptedServer, task_id: str) -> None:
    with pytest.raises(Refused) as caught:
        await call(server, lambda client: client.cancel(task_id))
    assert caught.value.business_code == Code.NO_SUCH_TASK
    assert server.requests == []


async def test_filters_travel_as_the_protocol_names_them(server: ScriptedServer) -> None:
    server.on("/api/v1/*", answer({"tasks": [TASK], "next_cursor": "c2"}))
    page = await call(
        server,
        lambda client: client.tasks(
            statuses=["running", "pending"], machine="m", name="a b", after="c1", limit=900
        ),
    )
    assert (page.tasks, page.next_cursor) == ([TASK], "c2")
    path = server.requests[0].path
    assert path == (
        "/api/v1/tasks?status=running&status=pending&machine=m&name=a%20b&after=c1&limit=200"
    ) or path.endswith("status=running&status=pending&machine=m&name=a+b&after=c1&limit=200")


@pytest.mark.parametrize(
    "data", [None, [], {"tasks": None}, {"tasks": [1]}, {"tasks": [], "next_cursor": 3}]
)
async def test_a_list_in_another_shape_is_no_answer(server: ScriptedServer, data: Any) -> None:
    server.on("/api/v1/*", answer(data))
    with pytest.raises(Unreachable):
        await call(server, lambda client: client.tasks())


@pytest.mark.parametrize(
    "data",
    [
        {"data": None, "next_offset": 0, "eof": True},
        {"data": "", "next_offset": "0", "eof": True},
        {"data": "", "next_offset": 0, "eof": None},
        {"data": "", "next_offset": 0, "eof": True, "dropped": "many"},
    ],
)
async def test_output_in_another_shape_is_no_answer(server: ScriptedServer, data: Any) -> None:
    server.on("/api/v1/tasks/t-1/*", answer(data))
    with pytest.raises(Unreachable):
        await call(server, lambda client: client.logs("t-1", stream="stdout"))


async def test_every_endpoint_is_called_by_its_method_and_path(server: ScriptedServer) -> None:
    def echo(request: Request) -> Reply:
        return answer(
            {**TASK, "method": request.method, "reasons": [], "sent": request.body.decode()}
        )

    for path in ("/api/v1/tasks/t-1", "/api/v1/tasks/t-1/*"):
        server.on(path, echo)
    done = {
        "PUT /api/v1/tasks/t-1": lambda client: client.replace("t-1", {"command": "true"}),
        "DELETE /api/v1/tasks/t-1": lambda client: client.delete("t-1"),
        "POST /api/v1/tasks/t-1/cancel": lambda client: client.cancel("t-1", reason="why"),
        "POST /api/v1/tasks/t-1/retry": lambda client: client.retry("t-1"),
    }
    for what in done.values():
        await call(server, what)
    assert [f"{request.method} {request.path}" for request in server.requests] == list(done)
    assert json.loads(server.requests[2].body) == {"reason": "why"}
    assert "idempotency-key" in server.requests[3].headers


async def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.on("/api/v1/tasks/t-1", answer(TASK))
    assert await call(server, lambda client: client.task("t-1")) == TASK
