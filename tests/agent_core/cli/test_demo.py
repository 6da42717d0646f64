"""demo: the real thing, as a newcomer starts it; nothing of it stays behind."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import urllib.request
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent_core.cli.demo.house import _toml
from agent_core.cli.demo.workload import PRIME_COUNT, Job, jobs, primes_found

COMMAND = [sys.executable, "-m", "agent_core.cli", "demo"]
Start = Callable[..., Any]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a demo in a temporary directory of its own; at the end nothing of it may be left."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    started: list[Process] = []

    async def begin(*args: str, **environ: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *args, stdout=-1, stderr=-1, cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(temporary), **environ},
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert list(temporary.iterdir()) == []
    assert _processes_of(temporary) == []


def _processes_of(directory: Path) -> list[list[str]]:
    """Whoever still names the demo's directory: its programs, its agent's supervisor, its tasks."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except psutil.Error:
            continue
        demo = f"{directory}/remotegpu-demo-"
        if process.pid != os.getpid() and any(demo in word for word in words):
            found.append(process.cmdline())
    return found


def told(out: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def room_of(said: str) -> Path:
    """Its runtime directory, in memory."""
    name = re.search(r"remotegpu-demo-\w+", said)
    assert name is not None
    return Path("/dev/shm") / name[0]


async def lines_until(process: Process, wanted: str) -> list[str]:
    """What it says up to the line that holds `wanted`."""
    assert process.stdout is not None
    said = []
    async for line in process.stdout:
        said.append(line.decode())
        if wanted in said[-1]:
            return said
    raise AssertionError(f"never said {wanted!r}: {said}")


async def test_once_ends_by_itself_with_every_result_right(start: Start) -> None:
    """Whatever settings and proxies the environment names."""
    process = await start(
        "--once", "--json",
        REMOTEGPU_SERVER__PORT="1", REMOTEGPU_AGENT__MAX_WORKERS="nonsense", AGENT_TOKEN="theirs",
        HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9", ALL_PROXY="http://[::1]:9",
    )  # fmt: skip
    out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    last = {line["task"]["name"]: line for line in told(out) if "task" in line}
    ends = {name: line["task"]["status"] for name, line in last.items()}
    assert len(ends) == 16
    assert ends.pop("refused-by-policy") == "failed"
    assert ends.pop("after-the-refused") == "failed"
    assert set(ends.values()) == {"completed"}
    assert sum(int(last[f"primes-{n}-of-8"]["result"]) for n in range(1, 9)) == PRIME_COUNT
    assert "blocked pattern" in last["refused-by-policy"]["result"]
    assert last["fails-twice"]["result"] == "run 3"
    assert last["gives-way"]["result"] in {"run 2", "run 3"}  # it was preempted
    assert last["sum-of-the-shards"]["result"] == str(PRIME_COUNT)
    assert "did not complete" in last["after-the-refused"]["result"]
    assert last["tells-progress"]["task"]["progress"] in range(10, 101, 10)
    assert "148,933 primes" in told(out)[-1]["say"]
    assert not room_of(out.decode()).exists()


async def test_it_runs_until_ctrl_c_and_other_terminals_can_use_it(start: Start) -> None:
    process = await start(TERM="dumb")
    said = await lines_until(process, "Ctrl-C ends everything")
    exports = re.search(r"export REMOTEGPU_URL=(\S+) REMOTEGPU_TOKEN=(\S+)", "".join(said))
    assert exports is not None
    assert "\x1b" not in "".join(said)
    url, token = exports.groups()
    _cannot_be_seen(token)
    await _submit_from_elsewhere(url, token)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"1 unfinished tasks are being cancelled" in out


def _cannot_be_seen(token: str) -> None:
    """The tokens stand on no command line."""
    for process in psutil.process_iter():
        try:
            assert token not in " ".join(process.cmdline())
        except psutil.Error:
            continue


async def _submit_from_elsewhere(url: str, token: str) -> None:
    """A task that ignores TERM and would run for long."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent_core.cli", "submit", "-c", "trap '' TERM; sleep 1000",
        env={**os.environ, "REMOTEGPU_URL": url, "REMOTEGPU_TOKEN": token}, stdout=-1,
    )  # fmt: skip
    task_id = (await process.communicate())[0].decode().strip()
    request = urllib.request.Request(
        f"{url}/api/v1/tasks/{task_id}", headers={"Authorization": f"Bearer {token}"}
    )

    def status() -> str:
        with urllib.request.urlopen(request) as answer:
            return str(json.load(answer)["data"]["status"])

    while await asyncio.to_thread(status) != "running":
        await asyncio.sleep(0.1)


@pytest.mark.skipif(
    signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="nohup, perhaps, has SIGHUP ignored"
)
async def test_a_terminal_that_hangs_up_in_the_middle_leaves_nothing(start: Start) -> None:
    process = await start("--once")
    said = await lines_until(process, "running")
    process.send_signal(signal.SIGHUP)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert not room_of("".join(said)).exists()


async def test_stopped_twice_it_hurries_and_leaves_nothing(start: Start) -> None:
    process = await start("--once")
    await lines_until(process, "running")
    process.send_signal(signal.SIGINT)
    await lines_until(process, "being cancelled")
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130


async def test_stopped_at_once_it_leaves_nothing(start: Start) -> None:
    process = await start("--once")
    await lines_until(process, "Starting")
    process.send_signal(signal.SIGTERM)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


async def test_a_reader_that_leaves_ends_it_and_nothing_is_left(start: Start) -> None:
    process = await start("--once")
    await lines_until(process, "submitted")
    transport = process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
    transport.close()
    assert process.stderr is not None
    assert await process.stderr.read() == b""
    assert await process.wait() == 141


async def test_killed_it_takes_its_programs_along(start: Start, tmp_path: Path) -> None:
    process = await start()
    said = await lines_until(process, "submitted")
    process.kill()
    await process.wait()
    while any("agent_core.cli" in words for words in _processes_of(tmp_path / "tmp")):
        await asyncio.sleep(0.1)
    for process_left in _processes_of(tmp_path / "tmp"):  # its supervisor leaves when idle
        assert any("supervisor" in word for word in process_left)
    _clear(tmp_path / "tmp", room_of("".join(said)))


def _clear(directory: Path, room: Path) -> None:
    """What nobody was left to do."""
    for process in psutil.process_iter():
        try:
            if any(f"{directory}/" in word or f"{room}/" in word for word in process.cmdline()):
                process.kill()
        except psutil.Error:
            continue
    for path in (room, *directory.iterdir()):
        shutil.rmtree(path)


async def test_a_program_that_dies_at_its_start_is_told_with_its_last_words(
    start: Start, tmp_path: Path
) -> None:
    """Another package brings a command `server` as well."""
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[agent_core.commands]\nserver = other:server\n")
    process = await start("--once", "--json", PYTHONPATH=str(tmp_path))
    _, err = await process.communicate()
    assert process.returncode == 1
    message = json.loads(err)["error"]["message"]
    assert "the server ended by itself (exit code 1)" in message
    assert "comes from several packages (other, remotegpu)" in message


def test_settings_are_written_as_toml() -> None:
    import tomllib

    settings = {"a": {"text": 'q"\\uote é', "number": 1, "list": ["x", "y"]}, "b": {"k": "v"}}
    assert tomllib.loads(_toml(settings)) == settings


@pytest.fixture
def workload(tmp_path: Path) -> dict[str, Job]:
    return {job.name: job for job in jobs(tmp_path)}


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("urgent-script", {"status": "completed", "stdout": "338351\n"}),
        ("urgent-script", {"status": "failed", "exit_code": 1, "stdout": "338350\n"}),
        ("urgent-script", {"status": "completed"}),
        ("words-of-the-docs", {"status": "completed", "stdout": "      1 the\n"}),
        ("fails-twice", {"status": "completed", "stdout": "run 3\n"}),  # the file says 0
        ("refused-by-policy", {"status": "completed"}),
        ("refused-by-policy", {"status": "failed", "reason": "exited", "error_code": 0}),
        ("primes-1-of-8", {"status": "completed", "stdout": "Traceback"}),
        ("tells-progress", {"status": "cancelled"}),
        ("gives-way", {"status": "completed", "stdout": "run 1\n"}),
        ("sum-of-the-shards", {"status": "completed", "stdout": "148932\n"}),
        ("after-the-refused", {"status": "failed", "error_code": 30006}),
        ("after-the-refused", {"status": "completed"}),
    ],
)
def test_a_wrong_end_is_noticed(workload: dict[str, Job], name: str, end: dict[str, Any]) -> None:
    assert workload[name].complaint(end) != ""


def test_a_shard_that_counts_wrong_is_noticed() -> None:
    right = [{"name": f"primes-{n}", "stdout": str(PRIME_COUNT // 8 + (n < 5))} for n in range(8)]
    assert primes_found(right) == PRIME_COUNT
    assert primes_found([*right[:-1], {"name": "primes-7", "stdout": "1"}]) != PRIME_COUNT
    assert primes_found([]) == 0
