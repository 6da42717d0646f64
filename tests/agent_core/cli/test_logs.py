"""logs: byte for byte in a pipe, harmless on a terminal."""

import asyncio
import base64
import json
import os
import pty
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from agent_core.cli.run import run
from agent_core.testing.http_server import Reply, Request, ScriptedServer, answer

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py
LOGS = "/api/v1/tasks/t-1/*"


def serve(
    server: ScriptedServer, *, piece: int = 2**20, eof: bool = True, **streams: bytes
) -> None:
    """A server that hands out these streams in pieces, binary ones in base64."""

    def reply(request: Request) -> Reply:
        query = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        data = streams.get(query["stream"], b"")
        offset = int(query["offset"])
        part = data[offset : offset + piece]
        end = offset + len(part)
        return answer({**_coded(part), "offset": offset, "next_offset": end,
                       "eof": eof and end == len(data), "dropped": 0})  # fmt: skip

    server.on(LOGS, reply)


def _coded(part: bytes) -> Mapping[str, str]:
    try:
        return {"data": part.decode(), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(part).decode(), "encoding": "base64"}


async def test_each_stream_goes_to_its_own(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    serve(server, stdout=b"out\n", stderr=b"err\n")
    assert await remotegpu("logs", "t-1") == (0, "out\n", "err\n")
    assert await remotegpu("logs", "t-1", "--stream", "stderr") == (0, "err\n", "")


async def test_a_pipe_gets_the_bytes_as_they_are(
    server: ScriptedServer, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    data = bytes(range(256)) * 40 + "é\x1b[31m€".encode()
    serve(server, piece=1000, stdout=data)
    assert await asyncio.to_thread(run, ["logs", "t-1", "--stream", "stdout"]) == 0
    assert capsysbinary.readouterr().out == data


async def test_json_holds_text_or_base64(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    serve(server, stdout="é\x1b".encode(), stderr=b"\xff\x00")
    told = json.loads((await remotegpu("logs", "t-1", "--json")).out)
    assert told["stdout"] == {"data": "é\x1b", "encoding": "utf-8", "eof": True, "dropped": 0}
    assert told["stderr"]["encoding"] == "base64"
    assert base64.b64decode(told["stderr"]["data"]) == b"\xff\x00"


async def test_a_run_can_be_named(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    serve(server, stdout=b"x")
    await remotegpu("logs", "t-1", "--run", "2", "--stream", "stdout")
    assert server.requests[0].path.endswith("/logs?stream=stdout&offset=0&run=2")


async def test_a_task_that_has_not_ended_says_so(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    serve(server, eof=False)
    server.on("/api/v1/tasks/t-1", answer({"id": "t-1", "status": "running"}))
    done = await remotegpu("logs", "t-1")
    assert (done.code, done.out) == (0, "")
    assert "the task is running" in done.err


async def test_dropped_bytes_are_told(server: ScriptedServer, remotegpu: Remotegpu) -> None:
    piece = {"data": "x", "encoding": "utf-8", "offset": 0, "next_offset": 1, "eof": True}
    server.on(LOGS, answer({**piece, "dropped": 123}), answer({**piece, "dropped": None}))
    done = await remotegpu("logs", "t-1")
    assert "123 bytes of stdout were not kept" in done.err
    assert "some bytes of stderr were not kept" in done.err


async def test_base64_that_is_none_is_no_answer(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on(LOGS, answer({"data": "?!", "encoding": "base64", "next_offset": 1, "eof": True}))
    assert (await remotegpu("logs", "t-1")).code == 5


async def test_a_server_that_stands_still_ends_the_reading(
    server: ScriptedServer, remotegpu: Remotegpu
) -> None:
    server.on(LOGS, answer({"data": "x", "encoding": "utf-8", "next_offset": 0, "eof": False}))
    server.on("/api/v1/tasks/t-1", answer({"id": "t-1", "status": "completed"}))
    assert (await remotegpu("logs", "t-1", "--stream", "stdout")).code == 0
    assert len(server.asked(LOGS)) == 1


async def test_on_a_terminal_escape_sequences_are_shown_and_not_sent(
    server: ScriptedServer,
) -> None:
    serve(server, piece=7, stdout="\x1b]0;owned\x07 é€ \x1b[2J\rfast\ttab\r\nend".encode())
    shown = await asyncio.to_thread(_on_a_terminal, "logs", "t-1", "--stream", "stdout")
    assert shown == "\\x1b]0;owned\\x07 é€ \\x1b[2J\rfast\ttab\r\nend\n"


async def test_raw_sends_a_terminal_everything(server: ScriptedServer) -> None:
    serve(server, stdout=b"\x1b[31mred\x1b[0m\n")
    shown = await asyncio.to_thread(_on_a_terminal, "logs", "t-1", "--raw")
    assert shown == "\x1b[31mred\x1b[0m\n"


async def test_on_a_terminal_a_remark_begins_its_own_line(server: ScriptedServer) -> None:
    gap = {"data": "tail", "encoding": "utf-8", "offset": 9, "next_offset": 13, "eof": True}
    head = {"data": "head", "encoding": "utf-8", "offset": 0, "next_offset": 4, "eof": False}
    for raw in ((), ("--raw",)):
        server.on(LOGS, answer(head), answer({**gap, "dropped": 5}))
        shown = await asyncio.to_thread(_on_a_terminal, "logs", "t-1", "--stream", "stdout", *raw)
        assert shown == "head\nremotegpu: 5 bytes of stdout were not kept\ntail\n"


async def test_on_a_terminal_a_table_is_no_place_for_markup_either(server: ScriptedServer) -> None:
    task = {"id": "t-1", "status": "failed", "name": "[bold]x[/bold]\x1b[31m", "error": ":smile:"}
    server.on("/api/v1/*", answer({"tasks": [task], "next_cursor": None}))
    shown = await asyncio.to_thread(_on_a_terminal, "tasks", TERM="dumb", COLUMNS="200")
    assert "[bold]x[/bold]\\x1b[31m" in shown
    assert ":smile:" in shown
    assert "\x1b" not in shown


def _on_a_terminal(*args: str, **environ: str) -> str:
    """What the real command writes to a real terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "agent_core.cli", *args],
        stdin=its, stdout=its, stderr=its, env={**os.environ, "TERM": "xterm", **environ},
    )  # fmt: skip
    os.close(its)
    written = bytearray()
    try:
        while part := os.read(ours, 65_536):
            written += part
    except OSError:  # EIO: the last writer has closed it
        pass
    os.close(ours)
    assert process.wait() == 0
    return written.decode().replace("\r\n", "\n")  # the terminal's own carriage returns
