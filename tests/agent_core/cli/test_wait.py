"""wait: exit codes, and a server that is away for a while."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent_core.cli.exits import own_code
from agent_core.cli.run import run
from agent_core.testing.http_server import Reply, ScriptedServer, answer

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py


def task(status: str, task_id: str = "t-1", **more: Any) -> Reply:
    return answer({"id": task_id, "status": status, **more})


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "completed", "exit_code": 0, "reason": "exited"}, 0),
        ({"status": "completed", "exit_code": None}, 0),
        ({"status": "failed", "exit_code": 1, "reason": "exited"}, 1),
        ({"status": "failed", "exit_code": 3, "reason": "exited"}, 3),
        ({"status": "failed", "exit_code": 255, "reason": "exited"}, 255),
        ({"status": "failed", "exit_code": 124, "reason": "timeout", "error_code": 30011}, 124),
        ({"status": "failed", "exit_code": 143, "reason": "timeout"}, 124),
        ({"status": "failed", "exit_code": 143, "signal": "SIGTERM", "reason": "signal"}, 143),
        ({"status": "failed", "exit_code": None, "signal": "SIGSEGV", "reason": "signal"}, 139),
        ({"status": "failed", "exit_code": 137, "reason": "oom"}, 137),
        ({"status": "failed", "exit_code": None, "reason": "never_ran", "error_code": 30007}, 125),
        ({"status": "failed", "exit_code": 1, "reason": "refused", "error_code": 30006}, 125),
        ({"status": "failed", "exit_code": 1, "error_code": 30006}, 125),
        ({"status": "failed", "exit_code": 1, "reason": "lost", "error_code": 30008}, 125),
        ({"status": "failed", "exit_code": None, "error_code": 30010}, 125),
        ({"status": "failed", "exit_code": -1}, 125),
        ({"status": "failed", "exit_code": 0, "error": "process lost"}, 125),
        ({"status": "failed", "exit_code": True}, 125),
        ({"status": "failed", "exit_code": 256}, 125),
        ({"status": "failed", "exit_code": None, "signal": "SIGNOTHING"}, 125),
        ({"status": "cancelled", "exit_code": 143}, 125),
        ({"status": "cancelled", "exit_code": 0}, 125),
    ],
)
def test_a_tasks_own_code(end: dict[str, Any], code: int) -> None:
    assert own_code(end) == code


async def test_one_task_gives_its_own_code(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    server.on(
        "/api/v1/tasks/t-1", task("pending"), task("running"),
        task("failed", exit_code=7, reason="exited"),
    )  # fmt: skip
    done = await remotegpu("wait", "t-1")
    assert (done.code, done.out) == (7, "t-1 failed, exit code 7\n")
    assert len(server.requests) == 3


async def test_several_tasks_give_0_or_1(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    server.on("/api/v1/tasks/a", task("completed", "a", exit_code=0))
    server.on("/api/v1/tasks/b", task("running", "b"), task("failed", "b", exit_code=7))
    done = await remotegpu("wait", "a", "b")
    assert done.code == 1
    assert done.out.splitlines() == ["a completed, exit code 0", "b failed, exit code 7"]
    assert len(server.asked("/api/v1/tasks/a")) == 1
    both = await remotegpu("wait", "a", "a", "--json")
    assert both.code == 0
    assert [one["id"] for one in json.loads(both.out)["tasks"]] == ["a", "a"]


@pytest.mark.parametrize(
    "reply",
    [
        answer(code=30004, message="no such task", status=404),
        answer(code=30012, message="wrong token", status=401),
        answer([]),
    ],
)
async def test_our_own_failure_is_125_for_one_and_1_for_several(
    server: ScriptedServer, remotegpu: Remotegpu, reply: Reply
) -> None:
    server.on("/api/v1/tasks/t-1", reply)
    server.on("/api/v1/tasks/t-2", reply)
    assert (await remotegpu("wait", "t-1")).code == 125
    assert (await remotegpu("wait", "t-1", "t-2")).code == 1


async def test_a_server_that_is_away_at_the_beginning_is_waited_for(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    await server.stop()
    waiting = asyncio.create_task(asyncio.to_thread(run, ["wait", "t-1"]))
    told = ""
    while "still waiting" not in told:  # the test's own time-out is the bound
        told += capsys.readouterr().err
        await asyncio.sleep(0.02)
    server.on("/api/v1/tasks/t-1", task("failed", exit_code=9, reason="exited"))
    await server.start()
    assert await waiting == 9


async def test_the_timeout_bounds_the_patience_with_a_server_that_is_away(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    await server.stop()
    done = await remotegpu("wait", "t-1", "--timeout", "0.5")
    assert done.code == 125
    assert "cannot reach" in done.err.splitlines()[0]
    assert "not ended after 0.5s (cannot reach" in done.err.splitlines()[1]


async def test_the_timeout_bounds_the_patience_with_a_server_that_says_nothing(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on("/api/v1/tasks/t-1", Reply(gate=asyncio.Event()))
    done = await remotegpu("wait", "t-1", "--timeout", "0.3")
    assert done.code == 125
    assert "not ended after 0.3s (cannot reach" in done.err


async def test_an_address_that_a_control_plane_does_not_know_is_not_waited_for(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on("/api/v1/tasks/t-1", answer(code=30016, message="no such route", status=404))
    done = await remotegpu("wait", "t-1")
    assert done.code == 125
    assert "is no address that this control plane knows" in done.err


async def test_a_server_that_restarts_is_waited_for(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("/api/v1/tasks/t-1", task("running"))
    waiting = asyncio.create_task(asyncio.to_thread(run, ["wait", "t-1"]))
    await server.wait_for("/api/v1/tasks/t-1", 2)
    await server.stop()
    told = ""
    while "still waiting" not in told:  # the test's own time-out is the bound
        told += capsys.readouterr().err
        await asyncio.sleep(0.02)
    server.on(
        "/api/v1/tasks/t-1", Reply(status=502, body=b"<html>"), answer(code=30099, status=500),
        task("completed", exit_code=0),
    )  # fmt: skip
    await server.start()
    assert await waiting == 0
    lines = (told + capsys.readouterr().err).splitlines()
    assert len(lines) == 2
    assert "cannot reach" in lines[0]
    assert "answers again" in lines[1]


async def test_an_end_of_patience_is_125_and_leaves_the_task_alone(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on("/api/v1/tasks/t-1", task("running"))
    done = await remotegpu("wait", "t-1", "--timeout", "0.5")
    assert done.code == 125
    assert "not ended after 0.5s" in done.err
    assert {request.method for request in server.requests} == {"GET"}


async def test_notes_beside_json_are_json(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    server.on(
        "/api/v1/tasks/t-1", task("running"), Reply(status=502), task("completed", exit_code=0)
    )
    done = await remotegpu("wait", "t-1", "--json")
    assert json.loads(done.out)["status"] == "completed"
    assert ["note" in json.loads(line) for line in done.err.splitlines()] == [True, True]


async def test_usage_errors_are_2(remotegpu: Remotegpu) -> None:
    assert (await remotegpu("wait")).code == 2
    assert (await remotegpu("wait", "t-1")).code == 2  # no server is named
