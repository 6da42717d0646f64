"""tasks, task, cancel: what people and programs read of a task."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent_core.testing.http_server import Reply, Request, ScriptedServer, answer, as_json

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py


HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]x[/red]\u202egnp\r\n\x9b31m"
FULL = {
    "id": "t-1",
    "name": "train",
    "type": "shell",
    "command": "python3",
    "args": ["a b", "--x"],
    "status": "failed",
    "priority": 3,
    "exit_code": 137,
    "signal": "SIGKILL",
    "reason": "signal",
    "error": "killed",
    "machine_id": "m-1",
    "timeout": 7200,
    "retry_count": 1,
    "max_retries": 2,
    "created_at": "2026-01-31T12:00:00Z",
    "started_at": "2026-01-31T12:00:01Z",
    "ended_at": "2026-01-31T12:03:08Z",
    "runs": [
        {"run_no": 1, "started_at": "2026-01-31T12:00:01Z", "ended_at": "2026-01-31T12:01:01Z",
         "exit_code": 1, "signal": None, "reason": "exited"},
        {"run_no": 2, "started_at": "2026-01-31T12:02:01Z", "ended_at": "2026-01-31T12:03:08Z",
         "exit_code": 137, "signal": "SIGKILL", "reason": "signal"},
    ],
}  # fmt: skip


def listing(*tasks: dict[str, Any], cursor: str | None = None) -> Reply:
    return answer({"tasks": list(tasks), "next_cursor": cursor})


async def test_a_list_in_a_pipe_is_aligned_text_with_whole_ids(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    long_id = "0b8e7f9a-3d5c-4e8e-9d59-0d8f3f6f0c11"
    server.on("/api/v1/*", listing(FULL, {"id": long_id, "status": "pending", "priority": 10}))
    done = await remotegpu("tasks")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == [
        "ID", "NAME", "STATUS", "PRI", "EXIT", "CREATED", "TOOK", "MACHINE", "WAITS", "FOR",
        "NOTE",
    ]  # fmt: skip
    assert lines[1].split()[:5] == ["t-1", "train", "failed", "3", "137"]
    assert "3m07s" in lines[1]
    assert lines[2].startswith(long_id)
    assert lines[1].index("failed") == lines[2].index("pending")


async def test_filters_are_the_servers_work(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    server.on("/api/v1/*", listing())
    done = await remotegpu(
        "tasks", "--status", "running", "--status", "failed", "--machine", "m-1", "--name", "tr",
        "--limit", "7", "--after", "c",
    )  # fmt: skip
    assert done.code == 0
    assert server.requests[0].path == (
        "/api/v1/tasks?status=running&status=failed&machine=m-1&name=tr&after=c&limit=7"
    )


async def test_all_follows_every_cursor(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    def page(request: Request) -> Reply:
        at = int(request.path.partition("after=")[2].partition("&")[0] or 0)
        tasks = [{"id": f"t-{n}", "status": "pending"} for n in range(at, at + 200)]
        return listing(*tasks, cursor=str(at + 200) if at < 400 else None)

    server.on("/api/v1/*", page)
    done = await remotegpu("tasks", "--all", "--json")
    assert [task["id"] for task in json.loads(done.out)["tasks"]] == [f"t-{n}" for n in range(600)]
    assert json.loads(done.out)["next_cursor"] is None


async def test_a_list_that_goes_on_says_how(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    server.on("/api/v1/*", listing(FULL, cursor="c-2"))
    done = await remotegpu("tasks", "--limit", "1")
    assert "add --after c-2" in done.err
    told = await remotegpu("tasks", "--limit", "1", "--json")
    assert json.loads(told.out)["next_cursor"] == "c-2"


async def test_nothing_in_a_task_acts_on_the_terminal(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    task = {"id": "t-1", "status": "failed", "error": HOSTILE, "name": HOSTILE, "command": HOSTILE}
    server.on("/api/v1/tasks/t-1", answer(task))
    server.on("/api/v1/*", listing(task))
    for args in (["tasks"], ["task", "t-1"], ["wait", "t-1"], ["task", "t-1", "--json"]):
        done = await remotegpu(*args)
        acting = [char for char in done.out + done.err if ord(char) < 32 and char != "\n"]
        assert acting == []
        assert "\x9b" not in done.out
        assert "\u202e" not in done.out
    assert "[red]x[/red]" in (await remotegpu("task", "t-1")).out


async def test_a_servers_message_does_not_act_on_the_terminal(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on("/api/v1/tasks/t-1", answer(code=30005, message=f"no {HOSTILE}", status=400))
    done = await remotegpu("task", "t-1")
    assert done.code == 4
    assert "\\x1b]0;owned\\x07" in done.err
    assert "\x1b" not in done.err


async def test_a_task_is_shown_with_its_runs(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    server.on("/api/v1/tasks/t-1", answer(FULL))
    done = await remotegpu("task", "t-1")
    assert done.code == 0
    assert "command:" in done.out
    assert "python3 'a b' --x" in done.out
    assert "1 of 2" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[-3:]] == ["RUN", "1", "2"]
    assert "SIGKILL" in done.out.splitlines()[-1]


async def test_a_task_claims_no_count_of_the_retries_that_its_agent_made(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on("/api/v1/tasks/t-1", answer({**FULL, "retry_count": 0}))
    done = await remotegpu("task", "t-1")
    assert "up to 2" in done.out


async def test_a_task_in_json_is_the_servers_word(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on("/api/v1/tasks/t-1", answer(FULL))
    assert json.loads((await remotegpu("task", "t-1", "--json")).out) == FULL


@pytest.mark.parametrize("odd", [None, 1, "x", {}, [1], 1e300, True])
async def test_values_of_an_odd_type_are_shown_and_break_nothing(
    server: ScriptedServer, remotegpu: Remotegpu, odd: Any
) -> None:
    task = dict.fromkeys(FULL, odd) | {"id": "t-1", "status": "running", "progress": odd,
        "progress_message": odd, "cancel_requested_at": odd}  # fmt: skip
    server.on("/api/v1/tasks/t-1", answer(task))
    server.on("/api/v1/*", listing(task))
    assert (await remotegpu("task", "t-1")).code == 0
    assert (await remotegpu("tasks")).code == 0


async def test_a_running_task_shows_how_far_it_is(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    task = {"id": "t-1", "status": "running", "progress": 42, "progress_message": "epoch 3"}
    unknown = {"id": "t-2", "status": "running", "progress": None, "progress_message": "loading"}
    server.on("/api/v1/*", listing(task, unknown))
    lines = (await remotegpu("tasks")).out.splitlines()
    assert lines[1].endswith("42% epoch 3")
    assert "%" not in lines[2]


async def test_cancel_tells_what_comes_of_it(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    gone = {"id": "t-1", "status": "cancelled"}
    asked = {"id": "t-1", "status": "running", "cancel_requested_at": "2026-01-31T12:00:00Z"}
    server.on("/api/v1/tasks/t-1/cancel", answer(gone), answer(asked))
    assert (await remotegpu("cancel", "t-1", "--reason", "typo")).out == "t-1 cancelled\n"
    assert server.requests[0].json() == {"reason": "typo"}
    assert "will be cancelled by the machine" in (await remotegpu("cancel", "t-1")).out


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (answer(code=30004, message="no such task", status=404), 3),
        (answer(code=30012, message="wrong token", status=401), 4),
        (answer(code=30002, message="it is final", status=409), 4),
        (answer(code=30005, message="bad", status=400), 4),
        (answer(code=30099, message="internal error", status=500), 1),
        (answer(code=30016, message="no route", status=404), 5),
        (Reply(status=502, body=b"<html>"), 5),
        (as_json([]), 5),
    ],
)
async def test_each_failure_has_its_exit_code_and_its_json(
    server: ScriptedServer, remotegpu: Remotegpu, reply: Reply, code: int
) -> None:
    server.on("/api/v1/tasks/t-1/cancel", reply)
    plain = await remotegpu("cancel", "t-1")
    assert plain.code == code
    assert plain.out == ""
    assert plain.err.startswith("remotegpu: ")
    told = await remotegpu("cancel", "t-1", "--json")
    assert told.code == code
    assert told.out == ""
    assert json.loads(told.err)["error"]["exit_code"] == code


async def test_a_server_that_is_not_there_is_exit_5(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    await server.stop()
    done = await remotegpu("tasks")
    assert done.code == 5
    assert "cannot reach" in done.err
