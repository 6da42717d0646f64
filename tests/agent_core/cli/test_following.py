"""logs -f and submit --follow: live, through outages and retries, to the task's end."""

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from agent_core.cli.run import run
from agent_core.testing.http_server import Reply, Request, ScriptedServer, answer

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py
COMMAND = [sys.executable, "-m", "agent_core.cli"]
TASK = "/api/v1/tasks/t-1"
LOGS = "/api/v1/tasks/t-1/*"


@dataclass(kw_only=True)
class Run:
    """What one run has written so far."""

    stdout: bytes = b""
    stderr: bytes = b""
    over: bool = False
    gone: dict[str, tuple[int, int]] = field(default_factory=dict)  # bytes from, to of a stream
    dropped: int | None = 0
    sha256: dict[str, str] = field(default_factory=dict)  # what the server says, if not the truth


class Plane:
    """A control plane's view of one task, in pieces of `piece` bytes."""

    def __init__(self, server: ScriptedServer, *, piece: int = 2**16) -> None:
        self.runs: list[Run] = []
        self.status = "running"
        self.end: dict[str, Any] = {"exit_code": 0, "reason": "exited"}
        self.piece = piece
        server.on(LOGS, self._logs)
        server.on(TASK, self._task)
        server.on("/api/v1/tasks", answer({"id": "t-1", "status": "pending"}, status=201))

    def finish(self, status: str = "completed", **end: Any) -> None:
        for each in self.runs:
            each.over = True
        self.status = status
        self.end |= end

    def _task(self, _request: Request) -> Reply:
        runs = [{"run_no": number} for number, _ in enumerate(self.runs, 1)]
        final = self.status in ("completed", "failed", "cancelled")
        return answer(
            {"id": "t-1", "status": self.status, "runs": runs, **(self.end if final else {})}
        )

    def _logs(self, request: Request) -> Reply:
        query = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        stream, offset = query["stream"], int(query["offset"])
        number = int(query.get("run", len(self.runs)))
        if number > len(self.runs):
            return answer(code=30005, message=f"run: {number} is not there", status=400)
        one = self.runs[number - 1] if self.runs else Run(over=True)
        data: bytes = getattr(one, stream)
        if offset > len(data):
            return answer(code=30005, message=f"offset: {offset} is beyond", status=400)
        begin, end = one.gone.get(stream, (-1, -1))
        at = end if begin <= offset < end else offset
        part = data[at : min(at + self.piece, begin if at < begin else len(data))]
        told = {"offset": at, "next_offset": at + len(part), "dropped": one.dropped}
        told |= {"data": base64.b64encode(part).decode(), "encoding": "base64"}
        told["eof"] = one.over and at + len(part) == len(data)
        if told["eof"]:
            told["sha256"] = one.sha256.get(stream, hashlib.sha256(data).hexdigest())
        return answer(told)


@pytest.fixture
def plane(server: ScriptedServer) -> Plane:
    return Plane(server)


async def test_both_streams_are_shown_to_their_end(plane: Plane, remotegpu: Remotegpu) -> None:
    plane.piece = 3
    plane.runs = [Run(stdout="é€ out\n".encode(), stderr=b"err\n")]
    plane.finish()
    assert await remotegpu("logs", "-f", "t-1") == (0, "é€ out\n", "err\n")


async def test_output_comes_while_the_task_runs(server: ScriptedServer, plane: Plane) -> None:
    plane.runs = [Run(stdout=b"first\n")]
    process = await asyncio.create_subprocess_exec(*COMMAND, "logs", "-f", "t-1", stdout=-1)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"first\n"
    plane.runs[0].stdout += b"second\n"
    assert await process.stdout.readline() == b"second\n"
    plane.finish("failed", exit_code=3)
    assert (await process.communicate())[0] == b""
    assert process.returncode == 0
    assert any("wait_sec=30" in request.path for request in server.asked(LOGS))


async def test_a_task_that_has_not_begun_is_waited_for(
    server: ScriptedServer, plane: Plane, remotegpu: Remotegpu
) -> None:
    plane.status = "pending"
    following = asyncio.create_task(remotegpu("logs", "-f", "t-1"))
    await server.wait_for(LOGS, 2)
    plane.runs = [Run(stdout=b"x")]
    plane.finish()
    assert await following == (0, "x", "")


@pytest.mark.parametrize("status", ["cancelled", "failed"])
async def test_a_task_that_ends_without_a_run_ends_the_following(
    server: ScriptedServer, plane: Plane, remotegpu: Remotegpu, status: str
) -> None:
    plane.status = "pending"
    following = asyncio.create_task(remotegpu("logs", "-f", "t-1"))
    await server.wait_for(LOGS, 2)
    plane.finish(status)
    assert await following == (0, "", "")
    assert await remotegpu("logs", "-f", "t-1") == (0, "", "")


async def test_a_retrys_run_is_followed_on(plane: Plane, remotegpu: Remotegpu) -> None:
    plane.runs = [Run(stdout=b"one\n", over=True), Run(stdout=b"two\n"), Run(stdout=b"three\n")]
    plane.finish()
    done = await remotegpu("logs", "-f", "t-1", "--run", "2")
    assert (done.code, done.out) == (0, "two\nthree\n")
    assert done.err == "remotegpu: run 3 follows\n"
    assert (await remotegpu("logs", "-f", "t-1")).out == "three\n"


async def test_a_run_that_never_began_is_told_when_the_task_has_ended(
    plane: Plane, remotegpu: Remotegpu
) -> None:
    plane.runs = [Run(stdout=b"one\n")]
    plane.finish()
    done = await remotegpu("logs", "-f", "t-1", "--run", "2")
    assert (done.code, done.out) == (0, "")
    assert "run 2 never began: the task has ended" in done.err
    assert (await remotegpu("logs", "-f", "t-1", "--run", "1")).err == ""


async def test_a_server_that_goes_away_is_come_back_to_at_the_same_byte(
    server: ScriptedServer, plane: Plane
) -> None:
    plane.runs = [Run(stdout=b"before ", stderr=b"e")]
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "logs", "-f", "t-1", stdout=-1, stderr=-1
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert await process.stdout.readexactly(7) == b"before "
    assert await process.stderr.readexactly(1) == b"e"
    await server.stop()
    assert b"cannot reach" in await process.stderr.readline()
    plane.runs[0].stdout += b"after"
    plane.finish()
    await server.start()
    out, err = await process.communicate()
    assert (process.returncode, out) == (0, b"after")
    # A machine that is slow enough meets a second outage on the way: it is told like the first.
    told = err.replace(b"remotegpu: the control plane answers again\n", b"")
    assert err.endswith(b"the control plane answers again\n")
    assert all(b"cannot reach" in line for line in told.splitlines())


async def test_ctrl_c_leaves_the_task_and_says_how_to_come_back(
    server: ScriptedServer, plane: Plane
) -> None:
    plane.runs = [Run(), Run(stdout=b"12345", stderr=b"123")]
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "logs", "-f", "t-1", stdout=-1, stderr=-1
    )
    assert process.stdout is not None
    assert process.stderr is not None
    await process.stdout.readexactly(5)
    await process.stderr.readexactly(3)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    way = b"remotegpu logs -f t-1 --run 2 --offset 5:3"
    assert err == b"remotegpu: the task goes on; come back with: " + way + b"\n"
    assert {request.method for request in server.requests} == {"GET"}
    plane.runs[1].stdout += b"67"
    plane.finish()
    back = await asyncio.create_subprocess_exec(*COMMAND, *way.decode().split()[1:], stdout=-1)
    assert (await back.communicate())[0] == b"67"


async def test_what_was_not_kept_is_told_where_it_is_missing(
    plane: Plane, remotegpu: Remotegpu
) -> None:
    plane.runs = [Run(stdout=b"head....tail", gone={"stdout": (4, 8)}, dropped=4)]
    plane.finish()
    done = await remotegpu("logs", "-f", "t-1", "--stream", "stdout")
    assert (done.code, done.out) == (0, "headtail")
    assert done.err == "remotegpu: 4 bytes of stdout were not kept\n"


async def test_an_unknown_number_of_missing_bytes_is_told_at_the_end(
    plane: Plane, remotegpu: Remotegpu
) -> None:
    plane.runs = [Run(stdout=b"x", dropped=None, sha256={"stdout": "of what was before"})]
    plane.finish()
    done = await remotegpu("logs", "-f", "t-1", "--stream", "stdout")
    assert done == (0, "x", "remotegpu: some bytes of stdout were not kept\n")


async def test_output_that_is_not_what_the_server_keeps_is_an_error(
    plane: Plane, remotegpu: Remotegpu
) -> None:
    plane.runs = [Run(stdout=b"x", sha256={"stdout": "0" * 64})]
    plane.finish()
    done = await remotegpu("logs", "-f", "t-1")
    assert (done.code, done.out) == (1, "x")
    assert "what came of stdout is not what the control plane keeps" in done.err
    assert "remotegpu logs t-1 --run 1 --stream stdout" in done.err
    assert (await remotegpu("submit", "--follow", "--", "true")).code == 125
    # Of a part nobody knows the sum.
    plane.runs[0].stdout = b"xyz"
    assert (await remotegpu("logs", "-f", "t-1", "--offset", "1")).out == "yz"


async def test_output_that_was_seen_and_not_kept_is_no_error(
    server: ScriptedServer, plane: Plane
) -> None:
    """Of much output the control plane keeps head and tail when the run has ended."""
    plane.runs = [Run(stdout=b"head....tail")]
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "logs", "-f", "t-1", "--stream", "stdout", stdout=-1, stderr=-1
    )
    assert process.stdout is not None
    assert await process.stdout.readexactly(12) == b"head....tail"
    plane.runs[0].gone = {"stdout": (4, 8)}
    plane.runs[0].sha256 = {"stdout": hashlib.sha256(b"headtail").hexdigest()}
    plane.finish()
    assert await process.communicate() == (b"", b"")
    assert process.returncode == 0


async def test_an_offset_beyond_the_end_is_the_servers_to_refuse(
    plane: Plane, remotegpu: Remotegpu
) -> None:
    plane.runs = [Run(stdout=b"x")]
    plane.finish()
    done = await remotegpu("logs", "-f", "t-1", "--offset", "9")
    assert done.code == 4
    assert "offset: 9 is beyond" in done.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--offset", "-1"], "no offset"),
        (["--offset", "1:"], "no offset"),
        (["--offset", "9" * 19], "no offset"),
        (["--offset", "1:2", "--stream", "stderr"], "one of them has one offset"),
    ],
)
async def test_a_wrong_offset_is_usage(
    server: ScriptedServer, remotegpu: Remotegpu, args: list[str], words: str
) -> None:
    done = await remotegpu("logs", "-f", "t-1", *args)
    assert done.code == 2
    assert words in done.err
    assert server.requests == []


async def test_submit_and_follow_ends_with_the_tasks_own_code(
    plane: Plane, remotegpu: Remotegpu
) -> None:
    plane.runs = [Run(stdout=b"out\n", stderr=b"err\n")]
    plane.finish("failed", exit_code=7)
    done = await remotegpu("submit", "--follow", "--", "x")
    assert (done.code, done.out) == (7, "out\n")
    assert done.err.splitlines() == [
        "remotegpu: submitted t-1", "err", "remotegpu: t-1 failed, exit code 7",
    ]  # fmt: skip


async def test_in_json_each_piece_is_a_line(plane: Plane, remotegpu: Remotegpu) -> None:
    plane.runs = [Run(stdout=b"a\xff")]
    plane.finish()
    done = await remotegpu("submit", "--follow", "--json", "--", "x")
    first, piece, last = map(json.loads, done.out.splitlines())
    assert (first["task"]["status"], last["task"]["status"]) == ("pending", "completed")
    assert base64.b64decode(piece.pop("data")) == b"a\xff"
    assert piece == {"run": 1, "stream": "stdout", "offset": 0, "encoding": "base64"}


async def test_a_reader_that_leaves_ends_the_following(plane: Plane) -> None:
    plane.runs = [Run(stdout=b"x\n" * 100_000)]

    def read_one_line() -> tuple[int, bytes]:
        process = subprocess.Popen([*COMMAND, "logs", "-f", "t-1"], stdout=-1, stderr=-1)
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 2)
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        return process.wait(), errors

    assert await asyncio.to_thread(read_one_line) == (141, b"")


async def test_a_stream_that_a_server_forgot_to_end_is_left_when_the_task_is_over(
    server: ScriptedServer, plane: Plane, remotegpu: Remotegpu
) -> None:
    plane.runs = [Run(stdout=b"x")]
    plane.status = "completed"
    assert (await remotegpu("logs", "-f", "t-1")) == (0, "x", "")


async def test_no_such_task_and_a_wrong_token_end_it_at_once(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on(TASK, answer(code=30004, message="no such task", status=404))
    assert (await remotegpu("logs", "-f", "t-1")).code == 3
    server.on(TASK, answer({"id": "t-1", "status": "running"}))
    server.on(LOGS, answer(code=30012, message="wrong token", status=401))
    assert (await remotegpu("logs", "-f", "t-1")).code == 4


async def test_a_bound_of_the_server_is_waited_out(
    server: ScriptedServer, plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    plane.runs = [Run(stdout=b"x")]
    plane.finish()
    server.on(LOGS, answer(code=30013, message="too many wait", status=503), plane._logs)
    assert await asyncio.to_thread(run, ["logs", "-f", "t-1", "--stream", "stdout"]) == 0
    out, err = capsys.readouterr()
    assert out == "x"
    assert err.splitlines() == [
        "remotegpu: too many wait; still following", "remotegpu: the control plane answers again",
    ]  # fmt: skip
