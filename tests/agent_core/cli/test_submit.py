"""submit: what is sent for each form, and what is refused before anything is sent."""

import io
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent_core.testing.http_server import Reply, ScriptedServer, answer

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py


NEW = {"id": "t-1", "status": "pending"}


def take(server: ScriptedServer) -> None:
    server.on("/api/v1/tasks", answer(NEW, status=201))


def sent(server: ScriptedServer) -> Any:
    return server.asked("/api/v1/tasks")[-1].json()


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        (["--", "ls"], {"command": "ls", "args": [], "exec": True}),
        (["--", "echo a | wc"], {"command": "echo a | wc", "args": [], "exec": True}),
        (
            ["--name", "n", "--", "prog", "--name", "x", "--", "--json"],
            {"name": "n", "command": "prog", "args": ["--name", "x", "--", "--json"], "exec": True},
        ),
        (["-c", "a | b"], {"command": "a | b", "type": "shell"}),
        (["--shell", "a | b"], {"command": "a | b", "type": "shell"}),
        (["--type", "python", "-c", "print(1)"], {"command": "print(1)", "type": "python"}),
        (["job.sh"], {"command": "#!/bin/sh\necho é\n", "type": "script"}),
        (["--type", "shell", "job.sh"], {"command": "#!/bin/sh\necho é\n", "type": "shell"}),
    ],
)
async def test_each_form_is_sent_as_it_is_meant(
    server: ScriptedServer, remotegpu: Remotegpu, tmp_path: Path, args: list[str], fields: Any
) -> None:
    (tmp_path / "job.sh").write_text("#!/bin/sh\necho é\n")
    take(server)
    done = await remotegpu("submit", *args)
    assert (done.code, done.out, done.err) == (0, "t-1\n", "")
    assert sent(server) == {**fields, "user": "ada"}


async def test_a_script_comes_from_standard_input(
    server: ScriptedServer, remotegpu: Remotegpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"echo hi\n")))
    take(server)
    assert (await remotegpu("submit", "-")).code == 0
    assert sent(server) == {"command": "echo hi\n", "type": "script", "user": "ada"}


async def test_every_option_reaches_its_field(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    take(server)
    done = await remotegpu(
        "submit", "--name", "n", "--priority", "1", "--timeout", "5m", "--retries", "2",
        "--retry-delay", "1.5", "--env", "A=1", "--env", "B=x=y", "--env", "C=", "--workdir", "/w",
        "--machine", "m", "--id", "my-id", "--idempotency-key", "k 1", "--json", "--user", "bob",
        "--gpus", "2", "--gpu", "a100", "--gpu-memory", "20GiB", "--cpus", "1.5",
        "--memory", "1024",
        "--label", "zone=a", "--label", "x=y=z", "--executor", "podman",
        "--after", "a-1,a-2", "--after", "a-3", "--after", "a-1", "--", "true",
    )  # fmt: skip
    assert json.loads(done.out) == NEW
    assert sent(server) == {
        "command": "true", "args": [], "exec": True, "id": "my-id", "name": "n", "priority": 1,
        "timeout": 300, "max_retries": 2, "retry_delay": 1.5, "workdir": "/w", "machine_id": "m",
        "env": {"A": "1", "B": "x=y", "C": ""}, "user": "bob", "executor": "podman",
        "labels": {"zone": "a", "x": "y=z"}, "depends_on": ["a-1", "a-2", "a-3"],
        "resources": {
            "gpus": 2, "gpu": "a100", "gpu_memory": 20 * 2**30, "cpus": 1.5, "memory": 1024,
        },
    }  # fmt: skip
    assert server.requests[0].headers["idempotency-key"] == "k 1"
    assert isinstance(sent(server)["timeout"], int)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "nothing to run"),
        (["--"], "give one of these"),
        (["-c", "x", "--", "y"], "give one of these"),
        (["file", "--", "y"], "give one of these"),
        (["-c", "x", "file"], "give one of these"),
        (["-c", "  "], "nothing to run"),
        (["missing.sh"], "there is no file missing.sh; to run a program write"),
        (["."], "cannot be read"),
        (["binary"], "no UTF-8 text"),
        (["nul.sh"], "NUL"),
        (["--type", "python", "--", "x"], "--type belongs to"),
        (["--type", "python", "big.sh"], "--type script"),
        (["huge.sh"], "longer than"),
        (["--priority", "0", "--", "x"], "--priority"),
        (["--priority", "11", "--", "x"], "--priority"),
        (["--timeout", "soon", "--", "x"], "no duration"),
        (["--timeout", "-1", "--", "x"], "--timeout"),
        (["--retries", "-1", "--", "x"], "--retries"),
        (["--env", "A", "--", "x"], "NAME=VALUE"),
        (["--env", "=1", "--", "x"], "NAME=VALUE"),
        (["--workdir", "here", "--", "x"], "not absolute"),
        (["--gpus", "-1", "--", "x"], "--gpus"),
        (["--gpus", "some", "--", "x"], "--gpus"),
        (["--gpus", "0", "--gpu", "a100", "--", "x"], "--gpus 0"),
        (["--gpu-memory", "much", "--", "x"], "--gpu-memory"),
        (["--memory", "-1", "--", "x"], "--memory"),
        (["--memory", "8 elephants", "--", "x"], 'such as "20GiB"'),
        (["--cpus", "nan", "--", "x"], "--cpus"),
        (["--cpus", "-1", "--", "x"], "--cpus"),
        (["--label", "zone", "--", "x"], "NAME=VALUE"),
        (["--after", " , ", "--", "x"], "--after"),
        (["--array", "3-1", "--", "x"], "names no index"),
        (["--array", "1-3:0", "--", "x"], "names no index"),
        (["--array", "a", "--", "x"], "--array"),
        (["--array", "1,", "--", "x"], "--array"),
        (["--array", "0-10000", "--", "x"], "more than 10000"),
        (["--array", "0-999999999", "--", "x"], "more than 10000"),
        (["--array", "0-1", "--id", "y", "--", "x"], "--id is for one task"),
        (["--array", "0-1", "--follow", "--", "x"], "--follow is for one task"),
        (["--", "a\udcff"], "UTF-8"),
        (["nvidia-smi", "-L"], "-L"),
    ],
)
async def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    server: ScriptedServer, remotegpu: Remotegpu, tmp_path: Path, args: list[str], words: str
) -> None:
    (tmp_path / "binary").write_bytes(b"\x7fELF\xff\xfe")
    (tmp_path / "nul.sh").write_bytes(b"echo \0")
    (tmp_path / "big.sh").write_bytes(b"#" * 140_000)
    (tmp_path / "huge.sh").write_bytes(b"#" * (2**20 + 1))
    take(server)
    done = await remotegpu("submit", *args)
    assert done.code == 2
    assert words in done.err
    assert server.requests == []


async def test_a_usage_error_in_json_is_json(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    done = await remotegpu("submit", "--json")
    assert done.code == 2
    assert json.loads(done.err)["error"]["kind"] == "Usage"
    # Behind -- it is the task's own word.
    plain = await remotegpu("submit", "--nope", "--", "x", "--json")
    assert plain.code == 2
    assert plain.err.startswith("Usage: remotegpu submit")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "completed", "exit_code": 0}, 0),
        ({"status": "failed", "exit_code": 3, "reason": "exited"}, 3),
        ({"status": "failed", "exit_code": 137, "signal": "SIGKILL", "reason": "signal"}, 137),
    ],
)
async def test_with_wait_the_exit_code_is_the_tasks_own(
    server: ScriptedServer, remotegpu: Remotegpu, end: dict[str, Any], code: int
) -> None:
    take(server)
    server.on("/api/v1/tasks/t-1", answer(NEW), answer({**NEW, **end}))
    done = await remotegpu("submit", "--wait", "--", "x")
    assert (done.code, done.out) == (code, "t-1\n")
    assert end["status"] in done.err
    server.on("/api/v1/tasks/t-1", answer({**NEW, **end}))
    told = await remotegpu("submit", "--wait", "--json", "--", "x")
    assert told.code == code
    assert json.loads(told.out)["status"] == end["status"]


@pytest.mark.parametrize(
    "reply",
    [
        answer(code=30012, message="wrong token", status=401),
        answer(code=30005, message="name is too long", status=400),
        answer(code=30004, message="no such machine", status=404),
    ],
)
async def test_with_wait_our_own_failure_is_125(
    server: ScriptedServer, remotegpu: Remotegpu, reply: Reply
) -> None:
    server.on("/api/v1/tasks", reply)
    assert (await remotegpu("submit", "--", "x")).code in (3, 4)
    assert (await remotegpu("submit", "--wait", "--", "x")).code == 125


async def test_with_wait_a_usage_error_is_still_2(remotegpu: Remotegpu) -> None:
    assert (await remotegpu("submit", "--wait")).code == 2
    assert (await remotegpu("submit", "--wait", "--", "x")).code == 2  # no server is named
