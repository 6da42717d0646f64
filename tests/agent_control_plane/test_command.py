"""`remotegpu server` as its operator meets it: starts, refusals to start, ends."""

import contextlib
import io
import logging
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from agent_core.cli.run import run

REMOTEGPU = str(Path(sys.executable).parent / "remotegpu")
TOKENS = {
    "REMOTEGPU_SERVER__AGENT_TOKEN": "agent-0123456789",
    "REMOTEGPU_SERVER__USER_TOKEN": "user-0123456789",
}
USER = {"Authorization": "Bearer user-0123456789"}
PATIENCE = 30


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "REMOTEGPU_SERVER__PORT": "0",
        "REMOTEGPU_SERVER__DATABASE": f"sqlite:///{tmp_path}/server.db",
        **TOKENS,
        **more,
    }


def refused(tmp_path: Path, *, code: int = 1, **more: str) -> str:
    """What a server that must not start writes; one message, no traceback, that exit code.

    The command line runs in this process: a program of its own is mostly imports. The tests of
    docs/trouble.md start such servers as programs.
    """
    env = {name: value for name, value in environment(tmp_path, **more).items() if value}
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        for name in os.environ:
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.chdir(tmp_path)
        with _nothing_else_changed():
            assert run(["server"]) == code, said.getvalue()
    words = said.getvalue()
    assert "Traceback" not in words
    assert words.count("\n") == 1, words
    return words


@contextlib.contextmanager
def _nothing_else_changed() -> Iterator[None]:
    """A server sets up its process: its log, and how many files it may open."""
    files, root = resource.getrlimit(resource.RLIMIT_NOFILE), logging.getLogger()
    handlers = root.handlers[:]
    try:
        yield
    finally:
        structlog.reset_defaults()
        root.handlers[:] = handlers
        resource.setrlimit(resource.RLIMIT_NOFILE, files)


@contextlib.contextmanager
def running(
    tmp_path: Path, *, enter: Sequence[str] = (), **more: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`enter` stands before the command and becomes it."""
    process = subprocess.Popen(
        [*enter, REMOTEGPU, "server"],
        env=environment(tmp_path, **more),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_without_a_token_it_tells_how_to_set_one(tmp_path: Path, name: str) -> None:
    words = refused(tmp_path, code=2, **{name: ""})
    assert name in words
    assert "openssl rand" in words


def test_one_token_for_agents_and_users_is_refused(tmp_path: Path) -> None:
    words = refused(tmp_path, code=2, REMOTEGPU_SERVER__AGENT_TOKEN="user-0123456789")
    assert "are the same" in words
    assert "0123456789" not in words


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = refused(tmp_path, REMOTEGPU_SERVER__PORT=port)
    assert f"cannot listen on 127.0.0.1 port {port}" in words
    assert not (tmp_path / "server.db").exists()


def test_a_host_that_is_no_address(tmp_path: Path) -> None:
    assert "server.host" in refused(tmp_path, REMOTEGPU_SERVER__HOST="no such host")


def damaged(path: Path) -> str:
    path.write_bytes(b"this is no database" * 1000)
    return "is damaged"


def damaged_within(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE tasks (a)")
        connection.executemany("INSERT INTO tasks VALUES (?)", [("x" * 500,)] * 200)
        connection.commit()
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(bytes(data))
    return "is damaged"


def newer(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("CREATE TABLE tasks (a)")
    return "newer version of remotegpu"


def foreign(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE something_else (a)")
    return "another program"


def directory(path: Path) -> str:
    path.mkdir()
    return "cannot be opened"


@pytest.mark.parametrize("make", [damaged, damaged_within, newer, foreign, directory])
def test_a_database_that_cannot_be_used(tmp_path: Path, make: Callable[[Path], str]) -> None:
    path = tmp_path / "server.db"
    words = make(path)
    before = path.read_bytes() if path.is_file() else b""
    message = refused(tmp_path)
    assert words in message
    assert str(path) in message
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    url = f"sqlite:///{tmp_path}/file/below/server.db"
    assert "cannot be opened" in refused(tmp_path, REMOTEGPU_SERVER__DATABASE=url)


def test_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    url = f"sqlite:///{tmp_path}/closed/server.db"
    assert "cannot be opened" in refused(tmp_path, REMOTEGPU_SERVER__DATABASE=url)


def test_a_database_that_another_program_holds(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "server.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert "locked by another program" in refused(tmp_path)


def test_a_database_that_another_server_uses(tmp_path: Path) -> None:
    with running(tmp_path):
        assert "in use by another server" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1", 'did you mean "port"'),
        ("[server]\nport = 99999", "server.port"),
        ("[server]\nlease_sec = 0", "server.lease_sec"),
        ("[server]\nlease_sec = 1.5", "whole seconds"),
        ('[server]\nlease_sec = "soon"', "server.lease_sec"),
        ('[server]\nagent_token = ["x"]', "server.agent_token"),
        ('[server]\ndatabase = "mysql://a/b"', "server.database"),
        ("[sever]\nport = 1", 'did you mean "server"'),
    ],
)
def test_a_setting_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "settings.toml").write_text(text + "\n")
    env = dict.fromkeys((*TOKENS, "REMOTEGPU_SERVER__PORT", "REMOTEGPU_SERVER__DATABASE"), "")
    if "database" in text or "[sever]" in text:
        env = {"REMOTEGPU_SERVER__DATABASE": ""}
    message = refused(tmp_path, code=2, **env)
    assert words in message
    assert "settings.toml" in message or "server.database" in message


def test_its_settings_come_from_a_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[server]\nport = 0\nagent_token = 12345678\nuser_token = "u-0123456789"\n'
        f'database = "sqlite:///{tmp_path}/other.db"\nlease_sec = "2m"\n'
    )
    process = subprocess.Popen(
        [REMOTEGPU, "server", "--settings", str(file)],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        try:
            url = re.search(r"http://\S+", process.stderr.readline())
            assert url
            reply = httpx.post(
                f"{url[0]}/api/v1/agent/register",
                json={"agent_id": "a", "machine_id": "m"},
                headers={"X-Agent-Token": "12345678"},
            )
            assert reply.json()["data"]["lease_sec"] == 120
        finally:
            process.kill()
    assert (tmp_path / "other.db").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_gently_although_clients_keep_their_connections(
    tmp_path: Path, signum: signal.Signals
) -> None:
    with running(tmp_path) as (process, url), httpx.Client(base_url=url, headers=USER) as client:
        assert client.post("/api/v1/tasks", json={"command": "x"}).status_code == 201
        process.send_signal(signum)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    with contextlib.closing(sqlite3.connect(tmp_path / "server.db")) as connection:
        assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (1,)


def test_a_second_signal_ends_it_although_a_client_dawdles(tmp_path: Path) -> None:
    with running(tmp_path) as (process, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as dawdling:
            head = f"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\n{_header()}\r\n"
            dawdling.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert httpx.get(f"{url}/health").status_code == 200
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0


def _header() -> str:
    return f"Authorization: {USER['Authorization']}"


def test_killed_at_any_moment_it_has_kept_every_task_that_it_accepted(tmp_path: Path) -> None:
    accepted: list[str] = []

    def submit(url: str) -> None:
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=url) as client:
            while True:
                body: dict[str, Any] = {"command": "x"}
                reply = client.post("/api/v1/tasks", json=body, headers=USER)
                if reply.status_code == 201:
                    accepted.append(reply.json()["data"]["id"])

    for _ in range(3):
        already = len(accepted)
        with running(tmp_path) as (process, url):
            threads = [threading.Thread(target=submit, args=(url,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            while len(accepted) < already + 40:
                assert process.poll() is None
                threads[0].join(0.01)
            process.kill()
            for thread in threads:
                thread.join()
    with contextlib.closing(sqlite3.connect(tmp_path / "server.db")) as connection:
        kept = {row[0] for row in connection.execute("SELECT id FROM tasks")}
    assert set(accepted) <= kept
    assert len(accepted) >= 120


def test_help_needs_neither_database_nor_server(tmp_path: Path) -> None:
    code = (
        "import sys; from agent_control_plane.command import server; "
        "print(sorted(m for m in sys.modules if m in ('sqlalchemy', 'uvicorn', 'starlette')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]"


def test_it_takes_as_many_files_as_it_may_since_each_agent_keeps_two(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 5000 if hard == resource.RLIM_INFINITY else min(hard, 5000)
    with running(tmp_path, enter=["prlimit", f"--nofile=256:{allowed}"]) as (process, _url):
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (allowed, allowed)


def test_out_of_files_it_says_so_once_and_serves_again_when_some_have_left(tmp_path: Path) -> None:
    with running(tmp_path, enter=["prlimit", "--nofile=60:60"]) as (process, url):
        assert process.stderr is not None
        with contextlib.ExitStack() as crowd:
            port = int(url.rpartition(":")[2].split()[0])
            for _ in range(80):
                crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
            said = process.stderr.readline()
            assert "out of open files" in said
            assert "LimitNOFILE" in said
        assert httpx.get(f"{url}/health", timeout=PATIENCE).status_code == 200
        process.terminate()
        rest = process.stderr.read()
    assert "out of open files" not in rest
    assert "Traceback" not in rest
