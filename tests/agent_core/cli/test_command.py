"""The command as a whole: help, completion, other packages' commands, pipes, Ctrl-C."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import pytest

from agent_core.cli.group import COMMANDS
from agent_core.cli.run import cli
from agent_core.testing.http_server import ScriptedServer, answer

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py
COMMAND = [sys.executable, "-m", "agent_core.cli"]


def plugin(directory: Path, **commands: str) -> None:
    """An installed package that brings commands: name = module source."""
    info = directory / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    lines = ["[agent_core.commands]"]
    for name, source in commands.items():
        (directory / f"other_{name}.py").write_text(source)
        lines.append(f"{name} = other_{name}:command")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


HELLO = """
import click
@click.command()
def command() -> None:
    click.echo("hello from elsewhere")
"""


async def test_help_lists_every_command(remotegpu: Remotegpu) -> None:
    done = await remotegpu("--help")
    assert done.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.out
    assert (await remotegpu("--version")).out.startswith("remotegpu ")


@pytest.mark.parametrize("name", COMMANDS)
async def test_every_command_has_json_help_and_the_short_help_of_the_list(
    remotegpu: Remotegpu, name: str
) -> None:
    done = await remotegpu(name, "--help")
    assert done.code == 0
    assert "--json" in done.out
    assert "Example" in done.out or "start file" in done.out
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name


@pytest.mark.parametrize("name", ["help", *COMMANDS])
def test_help_imports_neither_the_client_nor_the_agent(name: str) -> None:
    """What makes it slow: 100 ms of httpx, 60 of rich, 100 of pydantic and dynaconf."""
    args = ["--help"] if name == "help" else [name, "--help"]
    program = (
        "import sys; from agent_core.cli.run import run; run(sys.argv[1:]); "
        "heavy = {'httpx', 'rich', 'pydantic', 'dynaconf', 'starlette', 'sqlalchemy', 'psutil'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


async def test_a_wrong_word_is_usage_and_names_the_nearest(remotegpu: Remotegpu) -> None:
    done = await remotegpu("taks")
    assert done.code == 2
    assert "tasks" in done.err
    assert (await remotegpu()).code == 2


async def test_commands_of_other_packages_come_by_their_entry_points(
    remotegpu: Remotegpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path, hello=HELLO, tasks=HELLO)
    monkeypatch.syspath_prepend(str(tmp_path))
    helped = await remotegpu("--help")
    assert "(from other)" in helped.out
    assert "other_hello" not in sys.modules
    assert (await remotegpu("hello")).out == "hello from elsewhere\n"
    assert (await remotegpu("tasks", "--help")).out.startswith("Usage: remotegpu tasks")


@pytest.mark.parametrize(
    "source",
    ["raise RuntimeError('boom')", "import nothing_like_it", "command = 3", "x = 1", "def ("],
)
async def test_a_broken_package_breaks_only_its_own_command(
    remotegpu: Remotegpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.delitem(sys.modules, "other_broken", raising=False)
    plugin(tmp_path, broken=source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (await remotegpu("--help")).code == 0
    assert (await remotegpu("completion", "bash")).code == 0
    done = await remotegpu("broken")
    assert done.code == 1
    assert "the command 'broken' of other" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_scripts_call_us_back(remotegpu: Remotegpu, shell: str) -> None:
    done = await remotegpu("completion", shell)
    assert done.code == 0
    assert "_REMOTEGPU_COMPLETE" in done.out


def test_a_real_bash_completes_by_the_script(tmp_path: Path) -> None:
    program = tmp_path / "remotegpu"
    program.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    lines = (
        'eval "$(remotegpu completion bash)"; COMP_WORDS=(remotegpu submit --gpu-); COMP_CWORD=2; '
        '_remotegpu_completion remotegpu; echo "${COMPREPLY[@]}"; complete -p remotegpu'
    )
    done = subprocess.run(
        ["bash", "-c", lines], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert (done.stdout.splitlines()[0], done.stderr) == ("--gpu-memory", "")
    assert "_remotegpu_completion remotegpu" in done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("remotegpu ta", {"tasks", "task"}), ("remotegpu tasks --sta", {"--status"}),
     ("remotegpu tasks --status runn", {"running"}), ("remotegpu logs x --stream ",
                                                      {"stdout", "stderr", "both"})],
)  # fmt: skip
async def test_words_are_completed(
    remotegpu: Remotegpu, monkeypatch: pytest.MonkeyPatch, typed: str, offered: set[str]
) -> None:
    monkeypatch.setenv("_REMOTEGPU_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    done = await remotegpu()
    assert {line.partition(",")[2] for line in done.out.splitlines()} == offered


async def test_ids_are_completed_from_the_control_plane(
    server: ScriptedServer, remotegpu: Remotegpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [{"id": task_id, "status": "running"} for task_id in ("ab-1", "ab-2", "cd-1")]
    server.on("/api/v1/*", answer({"tasks": tasks, "next_cursor": None}))
    monkeypatch.setenv("_REMOTEGPU_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "remotegpu cancel ab")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert await remotegpu() == (0, "plain,ab-1\nplain,ab-2\n", "")
    assert "status=completed" not in server.requests[0].path
    assert "status=running" in server.requests[0].path
    await server.stop()
    assert (await remotegpu()).err == ""


async def test_a_reader_that_leaves_early_is_no_traceback(server: ScriptedServer) -> None:
    tasks = [{"id": f"t-{n}", "status": "pending", "name": "x" * 100} for n in range(200)]
    server.on("/api/v1/*", answer({"tasks": tasks, "next_cursor": None}))

    def read_one_line() -> tuple[bytes, int, bytes]:
        process = subprocess.Popen([*COMMAND, "tasks"], stdout=-1, stderr=-1)
        assert process.stdout is not None
        assert process.stderr is not None
        line = os.read(process.stdout.fileno(), 2)
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        return line, process.wait(), errors

    line, code, errors = await asyncio.to_thread(read_one_line)
    assert (line, errors) == (b"ID", b"")
    assert code in (0, 141)  # 0: it had written everything before we left


def test_help_into_a_closed_pipe_is_quiet() -> None:
    ours, its = os.pipe()
    os.close(ours)
    done = subprocess.run([*COMMAND, "--help"], stdout=its, stderr=subprocess.PIPE, check=False)
    os.close(its)
    assert (done.returncode, done.stderr) == (141, b"")


async def test_ctrl_c_ends_a_wait_with_130_and_no_traceback(server: ScriptedServer) -> None:
    server.on("/api/v1/tasks/t-1", answer({"id": "t-1", "status": "running"}))
    process = await asyncio.create_subprocess_exec(*COMMAND, "wait", "t-1", stdout=-1, stderr=-1)
    await server.wait_for("/api/v1/tasks/t-1", 2)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err.startswith(b"remotegpu: waiting has ended, the tasks have not")
    assert err.count(b"\n") == 1


@pytest.mark.parametrize(
    ("status", "code"), [({"status": "failed", "exit_code": 7, "reason": "exited"}, 7),
                         ({"status": "cancelled"}, 125)],
)  # fmt: skip
async def test_the_shell_sees_the_tasks_own_code(
    server: ScriptedServer, status: dict[str, Any], code: int
) -> None:
    server.on("/api/v1/tasks/t-1", answer({"id": "t-1", **status}))
    process = await asyncio.create_subprocess_exec(*COMMAND, "wait", "t-1", "--json", stdout=-1)
    out, _ = await process.communicate()
    assert process.returncode == code
    assert json.loads(out)["status"] == status["status"]


async def _shell(line: str) -> tuple[int | None, bytes, bytes]:
    """A command line of a real shell, in which $R is our command."""
    process = await asyncio.create_subprocess_shell(
        line, stdout=-1, stderr=-1, env={**os.environ, "R": " ".join(COMMAND)}
    )
    out, err = await process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$R --version >&-", 0),
        ("$R nope 2>&-", 2),
        ("$R submit - <&-", 2),
        ("$R tasks <&- >&- 2>&-", 0),
        ("$R tasks > /dev/full", 1),
        ("$R wait t-1 > /dev/full", 125),
        ("$R wait nobody 2> /dev/full", 125),
        ("$R task nobody 2> /dev/full", 3),
    ],
)
async def test_streams_that_are_closed_or_full_are_no_traceback(
    server: ScriptedServer, line: str, code: int
) -> None:
    server.on("/api/v1/tasks/nobody", answer(code=30004, message="no such task", status=404))
    server.on("/api/v1/tasks/t-1", answer({"id": "t-1", "status": "completed", "exit_code": 0}))
    server.on("/api/v1/*", answer({"tasks": [], "next_cursor": None}))
    ended, _, err = await _shell(line)
    assert ended == code
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("environ", "code"),
    [
        ({"REMOTEGPU_URL": "http://-..-"}, 5),
        ({"REMOTEGPU_URL": "http://xn--zz"}, 5),
        ({"REMOTEGPU_URL": "http://gpu.invalid", "HTTP_PROXY": "foo://x"}, 2),
        ({"REMOTEGPU_URL": "http://gpu.invalid", "ALL_PROXY": "socks5://x"}, 2),
        ({"REMOTEGPU_URL": "https://gpu.invalid", "SSL_CERT_FILE": "/nonexistent"}, 2),
    ],
)
async def test_an_environment_that_cannot_be_used_is_told(
    remotegpu: Remotegpu, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], code: int
) -> None:
    monkeypatch.setenv("REMOTEGPU_TOKEN", "t")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    done = await remotegpu("tasks")
    assert (done.code, done.out) == (code, "")
    assert done.err.count("\n") == 1


async def test_a_terminal_that_cannot_show_a_character_gets_its_number(
    server: ScriptedServer,
) -> None:
    server.on("/api/v1/tasks/t-1", answer({"id": "t-1", "status": "completed", "name": "é€"}))
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "task", "t-1", stdout=-1, env={**os.environ, "PYTHONIOENCODING": "latin-1"}
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"\xe9\\u20ac" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_docs_name_every_command_and_option(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    assert f"`remotegpu {name}" in page
    options = [opt for param in command.params for opt in param.opts if opt.startswith("-")]
    assert [opt for opt in options if f"{opt}" not in page] == []
