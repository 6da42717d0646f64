"""What counts as an answer, and what never does."""

import asyncio
import gzip
import json

import pytest

from agent_core import Code, Instant, SettingsError, Unreachable
from agent_core.clock import SystemClock
from agent_core.testing.http_server import NOT_FOUND, Reply, ScriptedServer, answer, as_json
from agent_core_plugins.server_client.http import Server, judge

OK_BODY = b'{"code":0,"message":"success","data":{"tasks":[]}}'
HTML = b"<html><body>502 Bad Gateway</body></html>"
NOW = Instant(wall=0.0, boottime=0.0, boot_id="boot")

NO_ANSWERS = {
    "nothing": Reply(body=b""),
    "not JSON": Reply(body=b"hello"),
    "cut off JSON": Reply(body=OK_BODY[:20]),
    "a number first": Reply(body=b"0 is fine"),
    "an array": Reply(body=b'[{"code":0}]'),
    "null": Reply(body=b"null"),
    "an empty object": Reply(body=b"{}"),
    "code as text": Reply(body=b'{"code":"0"}'),
    "code as boolean": Reply(body=b'{"code":false}'),
    "code as fraction": Reply(body=b'{"code":0.0}'),
    "code null": Reply(body=b'{"code":null}'),
    "not UTF-8": Reply(body=b'{"code":0,"message":"\xff\xfe"}'),
    "nested too deep": Reply(body=b'{"code":0,"data":' + b"[" * 200_000),
    "502 with HTML": Reply(status=502, body=HTML),
    "200 with HTML": Reply(body=HTML),
    "502 with success in it": Reply(status=502, body=OK_BODY),
    "500 with success in it": Reply(status=500, body=OK_BODY),
    "a redirect": Reply(status=307, headers={"Location": "http://127.0.0.1:1/"}),
    "a redirect with success in it": Reply(status=307, body=OK_BODY),
    "packed though not asked for": Reply(
        body=gzip.compress(OK_BODY), headers={"Content-Encoding": "gzip"}
    ),
    "fewer bytes than told": Reply(body=OK_BODY, length=len(OK_BODY) + 10, close=True),
    "reset in the middle": Reply(body=OK_BODY, length=len(OK_BODY) + 10, reset=True),
    "reset at once": Reply(raw=b"", reset=True),
    "closed at once": Reply(raw=b"", close=True),
    "no HTTP": Reply(raw=b"220 mail.example.com ESMTP\r\n", close=True),
    "a broken chunk": Reply(
        raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", close=True
    ),
}


def client(server: ScriptedServer, *, timeout: float = 5.0, token: str = "secret") -> Server:
    return Server(url=server.url, token=token, timeout=timeout, clock=SystemClock())


@pytest.mark.parametrize("reply", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
async def test_what_is_no_answer_is_an_outage_and_never_a_success(reply: Reply) -> None:
    async with ScriptedServer() as server:
        server.on("/call", reply)
        http = client(server)
        with pytest.raises(Unreachable) as raised:
            await http.call("/call", {})
        await http.close()
    assert str(raised.value)


async def test_an_answer_that_never_comes_is_an_outage() -> None:
    async with ScriptedServer() as server:
        server.on("/call", Reply(body=OK_BODY, gate=asyncio.Event()))
        http = client(server, timeout=0.05)
        with pytest.raises(Unreachable, match="no answer within"):
            await http.call("/call", {})
        await http.close()


async def test_an_answer_that_stops_in_the_middle_is_an_outage() -> None:
    async with ScriptedServer() as server:
        server.on("/call", Reply(body=OK_BODY, gate=asyncio.Event(), pause_at=60))
        http = client(server, timeout=0.05)
        with pytest.raises(Unreachable, match="no answer within"):
            await http.call("/call", {})
        await http.close()


async def test_an_answer_that_trickles_for_ever_is_an_outage() -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while await reader.read(1) or True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.CancelledError):
            writer.close()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # Long enough for each next part on a busy machine; all of it may take ten times that.
    http = Server(url=f"http://127.0.0.1:{port}", token="", timeout=0.15, clock=SystemClock())
    try:
        with pytest.raises(Unreachable, match="no whole answer"):
            await http.call("/call", {})
    finally:
        await http.close()
        server.close()
        await server.wait_closed()


async def test_an_answer_without_end_is_read_no_further_than_the_limit() -> None:
    async with ScriptedServer() as server:
        server.on("/call", Reply(body=b" " * (17 * 2**20), close=True))
        http = client(server)
        with pytest.raises(Unreachable, match="more than"):
            await http.call("/call", {})
        await http.close()


async def test_a_refused_connection_is_an_outage_with_its_reason() -> None:
    async with ScriptedServer() as server:
        http = client(server)
    with pytest.raises(Unreachable, match="Connection refused"):
        await http.call("/call", {})
    await http.close()


@pytest.mark.parametrize("url", ["http://no.such.host.invalid", "http://a..b"])
async def test_a_name_that_nobody_knows_is_an_outage(url: str) -> None:
    http = Server(url=url, token="", timeout=5.0, clock=SystemClock())
    with pytest.raises(Unreachable):
        await http.call("/call", {})
    await http.close()


async def test_a_kept_connection_that_the_server_closed_meanwhile_is_no_outage() -> None:
    async with ScriptedServer() as server:
        server.on("/call", answer(), Reply(raw=b"", close=True), answer({"second": True}))
        http = client(server)
        assert (await http.call("/call", {})).code == Code.OK
        assert (await http.call("/call", {})).data == {"second": True}
        await http.close()
        assert len(server.requests) == 3


async def test_a_call_carries_both_forms_of_the_token_and_the_protocol() -> None:
    async with ScriptedServer() as server:
        server.on("/call", answer())
        http = client(server, token="t0ken")
        await http.call("/call", {"name": "Zürich"})
        await http.close()
        headers = server.requests[0].headers
    assert headers["x-agent-token"] == "t0ken"
    assert headers["authorization"] == "Bearer t0ken"
    assert headers["x-agent-protocol"] == "1"
    assert headers["accept-encoding"] == "identity"  # nothing small unpacks to gigabytes
    assert server.requests[0].method == "POST"
    assert server.requests[0].json() == {"name": "Zürich"}


async def test_a_server_on_loopback_is_not_asked_for_at_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with ScriptedServer() as server:
        server.on("/call", answer())
        http = client(server)
        assert (await http.call("/call", {})).code == Code.OK
        await http.close()


def test_a_proxy_that_cannot_be_used_stops_the_start_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://proxy.example.com")
    with pytest.raises(SettingsError, match="HTTP_PROXY"):
        Server(url="http://gpu.example.com", token="", timeout=5.0, clock=SystemClock())


async def test_without_a_token_no_token_header_is_sent() -> None:
    async with ScriptedServer() as server:
        server.on("/call", answer())
        http = client(server, token="")
        await http.call("/call", {})
        await http.close()
        headers = server.requests[0].headers
    assert "x-agent-token" not in headers
    assert "authorization" not in headers


async def test_a_closed_client_is_an_outage_and_no_crash() -> None:
    async with ScriptedServer() as server:
        http = client(server)
        await http.close()
        with pytest.raises(Unreachable, match="stopping"):
            await http.call("/call", {})


async def test_connections_are_kept_alive() -> None:
    ports = set()

    async with ScriptedServer() as server:
        server.on("/call", answer())
        http = client(server)
        for _ in range(5):
            await http.call("/call", {})
            pool = http._client._transport._pool  # type: ignore[attr-defined]
            ports |= {id(connection) for connection in pool.connections}
        await http.close()
    assert len(ports) == 1


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, {"code": 0}, Code.OK),
        (201, {"code": 0}, Code.OK),
        (200, {"code": 401, "msg": "unauthorized"}, Code.NOT_AUTHORISED),
        (401, {"code": 30012, "message": "token missing"}, Code.NOT_AUTHORISED),
        (200, {"code": 500, "msg": "数据库错误"}, 500),
        (200, {"code": 409, "msg": "conflict"}, 409),
        (409, {"code": 30001, "message": "newer attempt"}, Code.ATTEMPT_LOST),
        (200, {"code": 30001, "message": "newer attempt"}, Code.ATTEMPT_LOST),
        (404, {"code": 30016, "message": "no route"}, Code.NO_ROUTE),
    ],
)
def test_the_code_in_the_body_decides_before_the_http_status(
    status: int, body: dict[str, object], code: int
) -> None:
    reply = judge(status, json.dumps(body).encode(), None, NOW)
    assert reply.code == code
    assert reply.message == (body.get("message") or body.get("msg") or "")


@pytest.mark.parametrize("status", [404, 405])
def test_a_plain_404_is_a_route_that_is_missing(status: int) -> None:
    assert judge(status, b"404 page not found", None, NOW).code == Code.NO_ROUTE


def test_numbers_that_no_number_can_hold_are_null_and_harm_nothing_else() -> None:
    raw = b'{"code":0,"data":{"a":NaN,"b":-Infinity,"c":1e999,"d":%s,"e":1.5,"f":7}}'
    reply = judge(200, raw % (b"9" * 5000), None, NOW)
    assert reply.data == {"a": None, "b": None, "c": None, "d": None, "e": 1.5, "f": 7}


async def test_the_pause_that_a_server_asks_for_is_told() -> None:
    async with ScriptedServer() as server:
        server.on(
            "/call",
            Reply(status=503, body=HTML, headers={"Retry-After": "17"}),
            Reply(status=503, body=HTML, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
            Reply(status=503, body=HTML, headers={"Retry-After": "9" * 5000}),
        )
        http = client(server)
        waits = []
        for _ in range(3):
            with pytest.raises(Unreachable) as raised:
                await http.call("/call", {})
            waits.append(raised.value.retry_after)
        await http.close()
    assert waits == [17.0, None, None]


async def test_the_moment_of_an_answer_is_when_its_request_was_sent() -> None:
    gate = asyncio.Event()
    clock = SystemClock()
    async with ScriptedServer() as server:
        server.on("/call", Reply(body=OK_BODY, gate=gate))
        http = client(server)
        before = clock.boottime()
        call = asyncio.create_task(http.call("/call", {}))
        await server.wait_for("/call")
        arrived = clock.boottime()
        gate.set()
        reply = await call
        await http.close()
    assert before <= reply.sent.boottime <= arrived


async def test_the_script_answers_unknown_paths_as_gin_does() -> None:
    async with ScriptedServer() as server:
        http = client(server)
        assert (await http.call("/nowhere", {})).code == Code.NO_ROUTE
        server.on("/list", as_json([1, 2]))
        with pytest.raises(Unreachable):
            await http.call("/list", {})
        await http.close()
    assert NOT_FOUND.status == 404
