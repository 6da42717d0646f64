"""Requests that cannot be: each gets an envelope that names the field and what would be right."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import BaseModel

from agent_control_plane.routes import endpoints
from agent_core.api.wire import AGENT_BODY_LIMIT, USER_BODY_LIMIT
from tests.agent_control_plane.batch import Teller
from tests.agent_control_plane.kit import (
    AGENT_TOKEN,
    BOTH,
    USER_TOKEN,
    House,
    Place,
    answer,
    open_house,
)
from tests.postgres import Cluster

# One server for all of them: nothing here needs a clean one.
pytestmark = pytest.mark.asyncio(loop_scope="module")
USER = {"Authorization": f"Bearer {USER_TOKEN}"}
AGENT = {"X-Agent-Token": AGENT_TOKEN, "X-Agent-Protocol": "1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=BOTH)
async def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    with contextlib.ExitStack() as stack:
        place = Place.file(tmp_path_factory.mktemp("server") / "server.db")
        if request.param != "sqlite":
            cluster: Cluster = request.getfixturevalue("postgres")
            place = Place.schema(cluster, stack.enter_context(cluster.schema()))
        async with open_house(place) as opened:
            yield opened


async def refused(house: House, body: bytes, path: str = "/api/v1/tasks") -> tuple[int, int, str]:
    headers = AGENT if "/agent/" in path else USER
    reply = await house.client.post(path, content=body, headers=headers)
    code, data = answer(reply)
    return reply.status_code, code, data["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: empty"),
        (b"nonsense", "body: not JSON"),
        (b'{"command": "x"', "body: not JSON"),
        (b'{"command": "x"} x', "body: not JSON"),
        (b'{"command": "\xff"}', "body: not JSON"),
        (b'{"command": "\\ud800"}', "body: not JSON"),
        (b'{"command": "x", "timeout": NaN}', "body: not JSON"),
        (b'{"command": "x", "timeout": 1e400}', "timeout"),
        (b'{"command": "x", "command": "y"}', "command: given twice"),
        (b'{"command": "x", "env": {"A": "1", "A": "2"}}', "A: given twice"),
        (b"[]", "body: a JSON object is needed"),
        (b"null", "body: a JSON object is needed"),
        (b"7", "body: a JSON object is needed"),
        (b"{}", "command: missing"),
        (b'{"command": ""}', "command"),
        (b'{"command": 7}', "command: text is needed"),
        (b'{"command": "a\\u0000b"}', "command: must not hold a NUL"),
        (b'{"command": "x", "args": "a"}', "args: a JSON list is needed"),
        (b'{"command": "x", "args": ["a", 1]}', "args.1: text is needed"),
        (b'{"command": "x", "args": ["a\\u0000"]}', "args.0: must not hold a NUL"),
        (b'{"command": "x", "env": {"A": 1}}', "env.A: text is needed"),
        (b'{"command": "x", "env": {"A=B": "1"}}', "env.A=B: the name of a variable"),
        (b'{"command": "x", "env": {"": "1"}}', "env.: the name of a variable"),
        (b'{"command": "x", "env": {"A\\u0000": "1"}}', "the name of a variable"),
        (b'{"command": "x", "env": {"A": "\\u0000"}}', "env.A: must not hold a NUL"),
        (b'{"command": "x", "env": []}', "env: a JSON object is needed"),
        (b'{"command": "x", "priority": 0}', "priority"),
        (b'{"command": "x", "priority": 11}', "priority: must be less than or equal to 10"),
        (b'{"command": "x", "priority": "3"}', "priority: a whole number is needed"),
        (b'{"command": "x", "priority": 3.0}', "priority: a whole number is needed"),
        (b'{"command": "x", "priority": true}', "priority: a whole number is needed"),
        (b'{"command": "x", "max_retries": -1}', "max_retries"),
        (b'{"command": "x", "max_retries": 18446744073709551616}', "max_retries"),
        (b'{"command": "x", "timeout": 0}', "timeout"),
        (b'{"command": "x", "timeout": 3.0}', "timeout: whole seconds are written"),
        (b'{"command": "x", "timeout": "60"}', "timeout: a number is needed"),
        (b'{"command": "x", "timeout": true}', "timeout: a number is needed"),
        (b'{"command": "x", "exec": 1}', "exec: true or false is needed"),
        (b'{"command": "x", "workdir": "relative/path"}', "workdir: must be an absolute path"),
        (b'{"command": "x", "type": "training"}', "type: must be 'shell', 'python' or 'script'"),
        (b'{"command": "x", "id": "a/b"}', "id"),
        (b'{"command": "x", "id": ".."}', "id"),
        (b'{"command": "x", "disconnect_grace": -1}', "disconnect_grace"),
        (b'{"command": "x", "on_lost_contact": "kill"}', "on_lost_contact"),
        (b'{"command": "x", "priorty": 1}', "priorty: no such key; did you mean priority?"),
        (b'{"command": "x", "user": 7}', "user: text is needed"),
        (b'{"command": "x", "labels": []}', "labels: a JSON object is needed"),
        (b'{"command": "x", "labels": {"site": 1}}', "labels.site: text is needed"),
        (b'{"command": "x", "labels": {"a b": "1"}}', "labels.a b"),
        (b'{"command": "x", "labels": {"a": "\\u0000"}}', "labels.a: must not hold a NUL"),
        (b'{"command": "x", "resources": []}', "resources: an object is needed"),
        (b'{"command": "x", "resources": {"gpu": 1}}', "resources.gpu: part of a model's name"),
        (b'{"command": "x", "resources": {"gpus": true}}', "resources.gpus: a whole number"),
        (b'{"command": "x", "resources": {"gpus": 1.0}}', "resources.gpus: a whole number"),
        (b'{"command": "x", "resources": {"gpus": 1025}}', "resources.gpus: a whole number"),
        (b'{"command": "x", "resources": {"cpus": "2"}}', "resources.cpus: a number"),
        (b'{"command": "x", "resources": {"memory": "8 apples"}}', "resources.memory: a size is"),
        (b'{"command": "x", "resources": {"gpuz": 1}}', "resources.gpuz: no such field"),
        (b'{"command": "x", "executor": "No Name"}', "executor"),
        (b'{"command": "x", "executer": ""}', "executer: no such key; did you mean executor?"),
        (b'{"command": "x", "depends_on": "a"}', "depends_on: a JSON list is needed"),
        (b'{"command": "x", "depends_on": ["a", 1]}', "depends_on.1: text is needed"),
        (b'{"command": "x", "depends_on": ["a/b"]}', "depends_on.0"),
        (b'{"command": "x", "depends_on": ["a", "b", "a"]}', "depends_on: names a twice"),
        (b'{"command": "x", "depends_on": ["nobody"]}', "depends_on.0: there is no task nobody"),
    ],
)
async def test_a_body_that_cannot_be_is_told_what_would_be_right(
    house: House, body: bytes, words: str
) -> None:
    _, before = await house.user.call("GET")
    status, code, message = await refused(house, body)
    assert (status, code) == (400, 30005)
    assert words in message
    assert await house.user.call("GET") == (0, before)


@pytest.mark.parametrize("depth", [250, 100_000])
async def test_a_body_that_is_too_deep_is_refused(house: House, depth: int) -> None:
    body = b'{"env": ' + b"[" * depth + b"]" * depth + b"}"
    status, code, message = await refused(house, body)
    assert (status, code) == (413, 30015)
    assert "deep" in message


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("tasks/claim", {"machine_id": "m"}, "agent_id: missing"),
        ("tasks/claim", {"agent_id": "a", "machine_id": "m", "limit": True}, "limit"),
        ("tasks/claim", {"agent_id": "a", "machine_id": "m", "limit": 3.5}, "limit"),
        ("tasks/claim", {"agent_id": "a", "machine_id": "m", "limit": "3"}, "limit"),
        ("tasks/claim", {"agent_id": "a", "machine_id": "m", "limit": -1}, "limit"),
        ("tasks/claim", {"agent_id": "a", "machine_id": ""}, "machine_id"),
        ("tasks/claim", {"agent_id": "a", "machine_id": "m", "request_id": 1}, "request_id"),
        ("tasks/x/complete", {"agent_id": "a", "attempt_id": "b", "exit_code": "0"}, "exit_code"),
        ("tasks/x/complete", {"agent_id": "a", "attempt_id": "b", "exit_code": 2**70}, "exit_code"),
        ("tasks/x/complete", {"agent_id": "a", "attempt_id": "b", "status": "done"}, "status"),
        ("tasks/x/progress", {"agent_id": "a", "attempt_id": "b", "percent": 101}, "percent"),
        ("tasks/x/progress", {"agent_id": "a", "attempt_id": "b", "percent": True}, "percent"),
        ("tasks/x/lease/renew", {"agent_id": "a", "attempt_id": "b", "extend_sec": "300"}, "ext"),
        ("register", {"agent_id": "a", "machine_id": "m", "agent_port": 70000}, "agent_port"),
        ("heartbeat", {"agent_id": "a", "machine_id": "m", "metrics": []}, "metrics"),
        ("heartbeat", {"agent_id": "a", "machine_id": "m", "metrics": {"x": "y" * 70_000}}, "met"),
    ],
)
async def test_an_agents_body_that_cannot_be_names_its_field(
    house: House, path: str, body: dict[str, Any], words: str
) -> None:
    status, code, message = await refused(house, json.dumps(body).encode(), f"/api/v1/agent/{path}")
    assert (status, code) == (400, 30005)
    assert message.startswith(words)


async def test_a_metric_beyond_every_number_is_refused(house: House) -> None:
    body = b'{"agent_id": "a", "machine_id": "m", "metrics": {"x": 1e400}}'
    assert (await refused(house, body, "/api/v1/agent/heartbeat"))[1] == 30005


async def test_what_an_agent_says_beyond_our_words_is_ignored(house: House) -> None:
    code, data = await house.agent().call(
        "register", machine_id="m", tags={"a": 1}, disks=[None], capabilities=["x"], novelty=1.5
    )
    assert code == 0
    assert data == {
        "status": "ok",
        "machine_id": "m",
        "capabilities": data["capabilities"],
        "limits": {"events": 100, "bytes": 8388608},
        "lease_sec": 300,
        "time": "2023-11-14T22:13:20.000Z",
    }


async def test_nul_in_what_an_agent_says_is_replaced(house: House) -> None:
    await house.user.submit()
    task = await house.agent().one()
    await house.agent().tell(task, "progress", percent=1, message="a\0b")
    assert (await house.user.get(task))["progress_message"] == "a�b"
    words = {"stdout": "x\0", "error": "e\0", "reason": "r\0", "signal": "S" * 99}
    assert (await house.agent().complete(task, 1, **words))[0] == 0
    shown = await house.user.get(task)
    assert (shown["stdout"], shown["error"], shown["reason"]) == ("x�", "e�", "r�")
    assert shown["signal"] == "S" * 64  # cut: a result is not lost for a word


# --- size


@pytest.mark.parametrize(
    ("path", "limit", "headers"),
    [
        ("/api/v1/tasks", USER_BODY_LIMIT, USER),
        ("/api/v1/agent/heartbeat", AGENT_BODY_LIMIT, AGENT),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused_and_the_connection_lives(
    house: House, path: str, limit: int, headers: dict[str, str], chunked: bool
) -> None:
    async def chunks() -> Any:
        for _ in range(limit // 65536 + 40):
            yield b" " * 65536

    content = chunks() if chunked else b" " * (limit + 1)
    reply = await house.client.post(path, content=content, headers=headers)
    assert (reply.status_code, answer(reply)[0]) == (413, 30015)
    assert str(limit) in answer(reply)[1]["message"]
    assert (await house.client.get("/health")).status_code == 200


async def test_a_body_of_the_largest_size_is_taken(house: House) -> None:
    body = json.dumps({"command": "x"}).encode()
    body += b" " * (USER_BODY_LIMIT - len(body))
    reply = await house.client.post("/api/v1/tasks", content=body, headers=USER)
    assert reply.status_code == 201


async def test_a_stranger_with_a_large_body_is_refused_before_it_is_read(house: House) -> None:
    reply = await house.client.post("/api/v1/tasks", content=b" " * (4 * USER_BODY_LIMIT))
    assert (reply.status_code, answer(reply)[0]) == (401, 30012)


async def test_a_client_that_hangs_up_within_its_body_does_no_harm(house: House) -> None:
    host, port = house.url.removeprefix("http://").split(":")
    for _ in range(5):
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {USER_TOKEN}\r\n"
        writer.write(f'{head}Content-Length: 100\r\n\r\n{{"comm'.encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert (await house.user.submit())["status"] == "pending"


# --- tokens


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": USER_TOKEN}, 401),
        ({"Authorization": f"Basic {USER_TOKEN}"}, 401),
        ({"Authorization": f"Bearer {USER_TOKEN}x"}, 401),
        ({"X-Agent-Token": USER_TOKEN}, 401),
        ({"Authorization": f"Bearer {AGENT_TOKEN}"}, 403),
        ({"Authorization": f"Bearer {USER_TOKEN}"}, 200),
        ({"Authorization": f"bearer {USER_TOKEN}"}, 200),
    ],
)
async def test_user_routes_take_the_user_token_alone(
    house: House, headers: dict[str, str], status: int
) -> None:
    reply = await house.client.get("/api/v1/tasks", headers=headers)
    assert reply.status_code == status
    assert answer(reply)[0] == (0 if status == 200 else 30012)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-Agent-Token": "wrong"}, 401),
        ({"X-Agent-Token": "wrong", "Authorization": f"Bearer {AGENT_TOKEN}"}, 401),
        ({"X-Agent-Token": "", "Authorization": f"Bearer {AGENT_TOKEN}"}, 200),
        ({"X-Agent-Token": USER_TOKEN}, 403),
        ({"Authorization": f"Bearer {USER_TOKEN}"}, 403),
        ({"X-Agent-Token": AGENT_TOKEN}, 200),
        ({"Authorization": f"Bearer {AGENT_TOKEN}"}, 200),
    ],
)
async def test_agent_routes_take_the_agent_token_alone(
    house: House, headers: dict[str, str], status: int
) -> None:
    body = {"agent_id": "a", "machine_id": "m"}
    reply = await house.client.post("/api/v1/agent/heartbeat", json=body, headers=headers)
    assert reply.status_code == status
    assert answer(reply)[0] == (0 if status == 200 else 30012)


async def test_no_route_is_open_by_mistake(house: House) -> None:
    for row in endpoints(house.plane):
        if row.path == "/health":
            continue
        for headers in ({}, {"Authorization": "Bearer x", "X-Agent-Token": "x"}):
            path = row.path.replace("{id}", "x")
            reply = await house.client.request(row.method, path, headers=headers)
            assert (reply.status_code, answer(reply)[0]) == (401, 30012), row.path
            assert reply.headers["www-authenticate"] == "Bearer"


async def test_an_empty_token_in_the_settings_refuses_everybody(tmp_path: Path) -> None:
    async with open_house(tmp_path / "s.db", agent_token="", user_token="") as house:
        for headers in ({}, {"Authorization": "Bearer"}, {"X-Agent-Token": ""}):
            assert (await house.client.get("/api/v1/tasks", headers=headers)).status_code == 401
            reply = await house.client.post("/api/v1/agent/register", json={}, headers=headers)
            assert reply.status_code == 401
        assert (await house.client.get("/health")).status_code == 200


# --- routes


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/api/v1/nothing", 404),
        ("POST", "/api/v1/tasks/", 404),
        ("GET", "/api/v1/tasks/a/b/c", 404),
        ("GET", "/api/v1/tasks/a%2Fb", 404),
        ("GET", "/api/v1/tasks/x/nothing", 404),
        ("POST", "/api/v1/tasks/x/suspend", 404),
        ("POST", "/api/v1/agent/nothing", 404),
        ("PATCH", "/api/v1/tasks", 405),
        ("GET", "/api/v1/agent/tasks/claim", 405),
        ("DELETE", "/health", 405),
        ("POST", "/openapi.json", 405),
    ],
)
async def test_a_route_that_is_not_there_is_said_so(
    house: House, method: str, path: str, status: int
) -> None:
    reply = await house.client.request(method, path, headers=USER)
    assert (reply.status_code, answer(reply)[0]) == (status, 30016)


async def test_a_wrong_method_is_told_the_right_ones(house: House) -> None:
    reply = await house.client.patch("/api/v1/tasks", headers=USER)
    assert reply.headers["allow"] == "GET, POST"
    assert "GET, POST" in answer(reply)[1]["message"]


@pytest.mark.parametrize("task_id", ["nothing", "%00", "%FF", "x" * 300, "..", "%E2%80%AE"])
async def test_an_id_that_cannot_be_is_no_task(house: House, task_id: str) -> None:
    reply = await house.client.get(f"{house.url}/api/v1/tasks/{task_id}/logs", headers=USER)
    assert reply.status_code == 404
    assert answer(reply)[0] in {30004, 30016}


async def test_a_claims_answer_is_not_to_be_kept_by_anybody(house: House) -> None:
    body = {"agent_id": "a", "machine_id": "m"}
    reply = await house.client.post("/api/v1/agent/tasks/claim", json=body, headers=AGENT)
    assert reply.headers["cache-control"] == "no-store"


async def test_a_failure_of_ours_is_an_envelope_without_its_inside(house: House) -> None:
    def broken(_connection: object) -> None:
        raise ZeroDivisionError("a secret detail")

    await house.user.submit()  # the writer works
    house.plane.gauge.admit = broken  # type: ignore[method-assign]  # as a bug would
    reply = await house.user.raw("POST", key="k", json={"command": "x"})
    assert (reply.status_code, answer(reply)[0]) == (500, 30099)
    assert "secret" not in reply.text
    del house.plane.gauge.admit
    assert (await house.user.submit("x", key="k"))["status"] == "pending"  # never stored


# --- the document


async def test_the_document_has_every_route_and_every_reference_leads_somewhere(
    house: House,
) -> None:
    document = (await house.client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    told = {(m.upper(), path) for path, row in document["paths"].items() for m in row}
    assert told == {(row.method, row.path) for row in endpoints(house.plane)}
    ids = [op["operationId"] for row in document["paths"].values() for op in row.values()]
    assert len(ids) == len(set(ids))
    for part in json.dumps(document).split('"$ref": "')[1:]:
        place: Any = document
        for step in part.split('"')[0].removeprefix("#/").split("/"):
            place = place[step]


async def test_the_document_is_made_of_the_models_that_validate(house: House) -> None:
    document = (await house.client.get("/openapi.json")).json()
    for row in endpoints(house.plane):
        operation = document["paths"][row.path][row.method.lower()]
        assert set(operation["responses"]) >= {str(row.status), "500", "503"}
        if row.body is not None:
            content = operation["requestBody"]["content"]["application/json"]
            name = content["schema"]["$ref"].rsplit("/", 1)[1]
            told = document["components"]["schemas"][name]["properties"]
            assert set(told) == set(row.body.model_fields)
        assert operation["security"] == [{name: []} for name in row.schemes]


async def test_real_answers_of_the_extensions_are_what_the_document_says(house: House) -> None:
    models = {row.path: row.answer for row in endpoints(house.plane)}
    base = "/api/v1/agent/"

    def check(path: str, data: Any) -> None:
        model = models[base + path]
        assert model is not None
        model.model_validate_json(json.dumps(data))

    agent = house.agent()
    await agent.register(capabilities=["commands"])
    await house.user.submit()
    task = await agent.one()
    await house.user.cancel(task)
    teller = Teller(agent)
    code, told = await teller.call(
        teller.event(task, "start"), teller.passing(task, "progress"), {"kind": "unknown"}
    )
    assert (code, len(told["commands"])) == (0, 1)
    check("events", told)
    log = await agent.tell(task, "log", stream="stdout", offset=0, data="eA==")
    check("tasks/{id}/log", log[1])
    house.clock.jump_wall(10)
    for path in ("heartbeat", "tasks/claim"):
        _, told = await agent.call(path, machine_id=agent.machine)
        check(path, told)
        assert len(told["commands"]) == (path == "heartbeat")


async def test_the_document_shows_what_an_event_is(house: House) -> None:
    document = (await house.client.get("/openapi.json")).json()
    shown = document["components"]["schemas"]["Events"]["properties"]["events"]["items"]
    kinds = {each["$ref"].rsplit("/", 1)[1] for each in shown["oneOf"]}
    assert {"StartEvent", "RunEvent", "CompleteEvent", "CommandEvent"} <= kinds


async def test_real_answers_are_what_the_document_says(house: House) -> None:
    models = {(row.method, row.path): row.answer for row in endpoints(house.plane)}

    def check(method: str, path: str, data: Any) -> None:
        model = models[method, path]
        assert model is not None
        assert issubclass(model, BaseModel)
        model.model_validate_json(json.dumps(data))

    agent, user = house.agent("new"), house.user
    base = "/api/v1/agent/"
    check("POST", base + "register", await agent.register())
    beat = await agent.call("heartbeat", machine_id="m", metrics={"cpu_usage_percent": 1.5})
    check("POST", base + "heartbeat", beat[1])
    for older in (False, True):
        submitted = await user.submit(args=["a"], env={"A": "b"}, timeout=1.5)
        check("POST", "/api/v1/tasks", submitted)
        teller = house.agent("new", older=older)
        task = await teller.one()
        check("POST", base + "tasks/claim", {"tasks": [task]})
        of = base + "tasks/{id}/"
        check("POST", of + "start", (await teller.start(task))[1])
        check("POST", of + "lease/renew", (await teller.renew(task))[1])
        check("POST", of + "progress", (await teller.tell(task, "progress", percent=None))[1])
        check("POST", "/api/v1/tasks/{id}/cancel", (await user.cancel(task))[1])
        usage = {"wall_s": 1, "max_rss_bytes": 7}
        ended = await teller.complete(task, 1, usage=usage, truncated={"stdout": None})
        check("POST", of + "complete", ended[1])
        check("GET", "/api/v1/tasks/{id}", await user.get(task))
        check("GET", "/api/v1/tasks/{id}/logs", (await user.call("GET", f"/{task['id']}/logs"))[1])
        retried = (await user.call("POST", f"/{task['id']}/retry"))[1]
        check("POST", "/api/v1/tasks/{id}/retry", retried)
        path = f"/{retried['id']}"
        check("PUT", "/api/v1/tasks/{id}", (await user.call("PUT", path, json={"command": "x"}))[1])
        given = await agent.one()
        check("POST", of + "release", (await agent.tell(given, "release"))[1])
        check("DELETE", "/api/v1/tasks/{id}", (await user.call("DELETE", path))[1])
    check("GET", "/api/v1/tasks", (await user.call("GET"))[1])
    check("GET", "/health", (await house.client.get("/health")).json()["data"])
