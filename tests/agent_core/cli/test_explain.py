"""explain, the hint after a submit, and whose tasks a list shows."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent_control_plane.reasons import Reason
from agent_core.cli.config import config_file, user_name
from agent_core.cli.explain import HOPELESS
from agent_core.testing.http_server import ScriptedServer, answer

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py
EXPLAIN = "/api/v1/tasks/t-1/explain"
HELD = {"machine_id": "gpu3", "code": "gpus_held", "text": "1 GPU needed, 0 free: held by 7f3a"}
TYPO = {"machine_id": "", "code": "unknown_machine", "text": "nobody has heard of \x1b[31mgpu9"}


def reasons(*told: dict[str, str]) -> Any:
    return answer({"reasons": list(told)})


async def test_each_machine_has_its_line(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    server.on(EXPLAIN, reasons(HELD, TYPO))
    done = await remotegpu("explain", "t-1")
    assert done.code == 0
    assert done.out.splitlines() == [
        "MACHINE  REASON           WHY",
        "gpu3     gpus_held        1 GPU needed, 0 free: held by 7f3a",
        "-        unknown_machine  nobody has heard of \\x1b[31mgpu9",
    ]
    assert json.loads((await remotegpu("explain", "t-1", "--json")).out) == {
        "reasons": [HELD, TYPO]
    }


async def test_a_machine_that_nobody_knows_is_told_at_submit(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on("/api/v1/tasks", answer({"id": "t-1", "status": "pending"}, status=201))
    server.on(EXPLAIN, reasons(TYPO))
    done = await remotegpu("submit", "--machine", "gpu9", "--", "true")
    assert (done.code, done.out) == (0, "t-1\n")
    assert "nobody has heard of \\x1b[31mgpu9; see: remotegpu explain t-1" in done.err


@pytest.mark.parametrize("reply", [reasons(HELD, TYPO), reasons(), answer(code=30099, status=500)])
async def test_what_may_run_later_is_no_cause_for_words(
    server: ScriptedServer, remotegpu: Remotegpu, reply: Any
) -> None:
    server.on("/api/v1/tasks", answer({"id": "t-1", "status": "pending"}, status=201))
    server.on(EXPLAIN, reply)
    assert await remotegpu("submit", "--gpus", "1", "--", "true") == (0, "t-1\n", "")


async def test_a_task_that_asks_for_nothing_is_not_asked_about(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on("/api/v1/tasks", answer({"id": "t-1", "status": "pending"}, status=201))
    assert (await remotegpu("submit", "--", "true")).code == 0
    assert len(server.requests) == 1


def test_the_reasons_that_mean_never_are_the_servers() -> None:
    assert {reason.value for reason in Reason} >= HOPELESS


async def test_mine_are_those_that_submit_would_name_mine(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on("/api/v1/*", answer({"tasks": [], "next_cursor": None}))
    assert (await remotegpu("tasks", "--mine")).code == 0
    assert (await remotegpu("tasks", "--user", "bob")).code == 0
    assert ["user=ada" in server.requests[0].path, "user=bob" in server.requests[1].path] == [
        True, True,
    ]  # fmt: skip
    assert (await remotegpu("tasks", "--mine", "--user", "bob")).code == 2


def test_the_configuration_names_the_user(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "USER": "ada"}
    assert user_name(environ) == "ada"
    path = config_file(environ)
    path.parent.mkdir(parents=True)
    path.write_text('user = "team-7"\n')
    assert user_name(environ) == "team-7"
    path.write_text("user = 7\n")  # told by whoever needs the file
    assert user_name(environ) == "ada"
    assert user_name({**environ, "USER": "a\x1bb"}) == ""


async def test_what_a_task_waits_for_and_asks_for_is_shown(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    task = {
        "id": "t-1", "status": "pending", "waits_for": "2 a100 GPU", "user": "ada",
        "labels": {"zone": "a", "x": "y"}, "executor": "podman", "depends_on": ["t-0", "t-9"],
        "resources": {"gpus": 2, "gpu": "a100", "gpu_memory": 20 * 2**30, "cpus": 4,
                      "memory": 3 * 2**29},
    }  # fmt: skip
    server.on("/api/v1/tasks/t-1", answer(task))
    server.on("/api/v1/*", answer({"tasks": [task], "next_cursor": None}))
    shown = (await remotegpu("task", "t-1")).out
    for words in (
        "2 a100 GPUs of 20 GiB each, 4 cpus, 1.5 GiB of memory", "zone=a, x=y", "podman",
        "t-0, t-9", "ada", "waits for:",
    ):  # fmt: skip
        assert words in shown
    assert "2 a100 GPU" in (await remotegpu("tasks")).out


async def test_several_are_cancelled_and_those_that_cannot_be_are_told(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    for task_id in ("a", "c"):
        gone = {"id": task_id, "status": "cancelled"}
        server.on(f"/api/v1/tasks/{task_id}/cancel", answer(gone))
    server.on("/api/v1/tasks/b/cancel", answer(code=30002, message="it is final", status=409))
    done = await remotegpu("cancel", "a", "b", "a", "c")
    assert (done.code, done.out) == (4, "a cancelled\nc cancelled\n")
    assert done.err.splitlines() == [
        "remotegpu: b: it is final", "remotegpu: 1 of 3 tasks could not be cancelled",
    ]  # fmt: skip
    told = await remotegpu("cancel", "a", "c", "--json")
    assert [task["id"] for task in json.loads(told.out)["tasks"]] == ["a", "c"]
