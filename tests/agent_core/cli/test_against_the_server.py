"""The client commands against the real control plane, with no agent beside it."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py
TOKENS = {"agent": "an-agents-token", "user": "a-users-token"}


@pytest.fixture
async def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A control plane of its own; the command's environment names it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = tmp_path / "server.toml"
    settings.write_text(
        f'[server]\nport = {port}\ndatabase = "sqlite:///{tmp_path}/server.db"\n'
        f'agent_token = "{TOKENS["agent"]}"\nuser_token = "{TOKENS["user"]}"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "agent_core.cli", "server", "--settings", str(settings)],
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("REMOTEGPU_URL", url)
    monkeypatch.setenv("REMOTEGPU_TOKEN", TOKENS["user"])
    try:
        await _until_healthy(url, process)
        yield url
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def _until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        while process.poll() is None:
            try:
                if (await http.get(f"{url}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    raise AssertionError("the server did not start")


async def _complete(url: str, **result: Any) -> None:
    """What an agent does with the next task: claim it, begin, and bring this end."""
    me = {"agent_id": "a-1", "machine_id": "m-1"}
    headers = {"X-Agent-Token": TOKENS["agent"], "X-Agent-Protocol": "1"}
    async with httpx.AsyncClient(
        base_url=f"{url}/api/v1/agent", headers=headers, trust_env=False
    ) as http:
        claimed = await http.post("/tasks/claim", json={**me, "limit": 1})
        task = claimed.json()["data"]["tasks"][0]
        of = {"agent_id": "a-1", "attempt_id": task["attempt_id"]}
        for call, more in (("start", {}), ("complete", result)):
            answer = await http.post(f"/tasks/{task['id']}/{call}", json={**of, **more})
            assert answer.json()["code"] == 0


async def test_a_task_from_submit_to_its_end(plane: str, remotegpu: Remotegpu) -> None:
    done = await remotegpu(
        "submit", "--name", "n", "--priority", "2", "--timeout", "90s", "--retries", "1",
        "--retry-delay", "2.5", "--env", "A=b", "--workdir", "/w", "--", "echo", "a b",
    )  # fmt: skip
    assert done.code == 0
    task_id = done.out.strip()
    shown = await remotegpu("task", task_id)
    assert "echo 'a b'" in shown.out
    assert "1m30s" in shown.out
    assert json.loads((await remotegpu("tasks", "--json")).out)["tasks"][0]["env"] == {"A": "b"}
    assert task_id in (await remotegpu("tasks", "--status", "pending", "--name", "n")).out
    assert task_id not in (await remotegpu("tasks", "--status", "running")).out
    empty = await remotegpu("logs", task_id)
    assert (empty.code, empty.out) == (0, "")
    assert "the task is pending" in empty.err
    waiting = asyncio.create_task(_wait_in_a_process(task_id))
    await _complete(
        plane, status="failed", exit_code=7, reason="exited", stdout="out é\n", stderr="err\n"
    )
    assert await waiting == 7
    assert await remotegpu("logs", task_id) == (0, "out é\n", "err\n")
    assert "failed" in (await remotegpu("task", task_id)).out


async def _wait_in_a_process(task_id: str) -> int | None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent_core.cli", "wait", task_id, stdout=-3, env=os.environ.copy()
    )
    return await process.wait()


async def test_the_same_key_is_the_same_task(plane: str, remotegpu: Remotegpu) -> None:
    submit = ("submit", "--idempotency-key", "k", "--", "true")
    first = await remotegpu(*submit)
    assert (await remotegpu(*submit)).out == first.out
    other = await remotegpu("submit", "--idempotency-key", "k", "--", "false")
    assert other.code == 4
    assert len(json.loads((await remotegpu("tasks", "--json")).out)["tasks"]) == 1


async def test_cancelled_is_125_and_final_is_refused(plane: str, remotegpu: Remotegpu) -> None:
    task_id = (await remotegpu("submit", "--id", "mine", "-c", "true")).out.strip()
    assert task_id == "mine"
    assert (await remotegpu("submit", "--id", "mine", "-c", "true")).code == 4
    assert (await remotegpu("cancel", "mine", "--reason", "typo")).out == "mine cancelled\n"
    again = await remotegpu("cancel", "mine", "--json")
    assert again.code == 4
    assert json.loads(again.err)["error"]["code"] == 30002
    assert (await remotegpu("wait", "mine")).code == 125
    assert (await remotegpu("wait", "mine", "mine")).code == 1


async def test_pages_follow_each_other(plane: str, remotegpu: Remotegpu) -> None:
    for number in range(5):
        assert (await remotegpu("submit", "--id", f"t-{number}", "--", "true")).code == 0
    first = json.loads((await remotegpu("tasks", "--limit", "2", "--json")).out)
    assert [task["id"] for task in first["tasks"]] == ["t-4", "t-3"]
    rest = await remotegpu("tasks", "--after", first["next_cursor"], "--json")
    assert [task["id"] for task in json.loads(rest.out)["tasks"]] == ["t-2", "t-1", "t-0"]
    assert json.loads(rest.out)["next_cursor"] is None
    assert (await remotegpu("tasks", "--after", "nonsense")).code == 4


async def test_no_such_task_is_3_and_a_wrong_token_4(
    plane: str, remotegpu: Remotegpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("task", "logs", "cancel"):
        assert (await remotegpu(command, "nobody")).code == 3
    assert (await remotegpu("wait", "nobody")).code == 125
    for token in ("wrong", TOKENS["agent"]):
        monkeypatch.setenv("REMOTEGPU_TOKEN", token)
        assert (await remotegpu("tasks")).code == 4
        assert (await remotegpu("submit", "--wait", "--", "true")).code == 125
    monkeypatch.setenv("REMOTEGPU_URL", f"{plane}/not/here")
    assert (await remotegpu("tasks")).code == 5


async def test_what_the_server_refuses_it_names(plane: str, remotegpu: Remotegpu) -> None:
    done = await remotegpu("submit", "--name", "x" * 300, "--", "true")
    assert done.code == 4
    assert "name" in done.err
