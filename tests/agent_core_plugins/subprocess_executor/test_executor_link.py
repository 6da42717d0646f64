"""The agent's end of the socket, spoken to by a scripted supervisor on a real socket."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent_core_plugins.subprocess_executor.connecting import connect
from agent_core_plugins.subprocess_executor.link import Link, LinkLost, Strange, shortened
from agent_core_plugins.subprocess_executor.supervisor.journal import VERSION

Serve = Callable[..., Path]
RUN = {"s": "a", "pid": 1, "ticks": 2, "wall": 3.0, "since": 4.0}
HELLO = {"t": "hello", "v": VERSION, "journal": "j", "pid": 7, "runs": [RUN]}
END = {"t": "end", "s": "a", "end": {"status": 0}}


def lines(*said: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in said)


@pytest.fixture
async def serve(runtime: Path) -> AsyncIterator[Serve]:
    """Answers the first line with some bytes, later ones with others, and can hang up."""
    servers: list[asyncio.AbstractServer] = []

    async def listen(first: bytes, *later: bytes, hang_up: bool = False) -> Path:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in (first, *later):
                await reader.readline()
                writer.write(answer)
            if not hang_up:
                await reader.read()
            writer.close()
            await writer.wait_closed()

        path = runtime / "socket"
        servers.append(await asyncio.start_unix_server(talk, path))
        return runtime

    yield listen
    for server in servers:
        server.close()
        await server.wait_closed()


def ended(link: Link, start_id: str) -> "asyncio.Future[dict[str, Any] | None]":
    heard: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
    link.listen(start_id, heard.set_result)
    return heard


async def test_an_end_in_the_same_breath_as_the_hello_is_heard(serve: Any) -> None:
    link = await connect(await serve(lines(HELLO, END)), "j")
    end = await asyncio.wait_for(ended(link, "a"), 10)
    assert end == {"status": 0}
    assert link.pid == 7
    link.close()


async def test_an_answer_in_pieces_is_put_together(runtime: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(runtime / "socket"))
        listener.listen()
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        connecting = asyncio.create_task(connect(runtime, "j"))
        peer, _ = await loop.sock_accept(listener)
        with peer:
            for byte in lines(HELLO, END):
                await loop.sock_sendall(peer, bytes([byte]))
                await asyncio.sleep(0)
            link = await connecting
            assert await asyncio.wait_for(ended(link, "a"), 10) == {"status": 0}
            link.close()


async def test_an_end_is_awaited_by_many_and_a_lost_link_wakes_them_all(serve: Any) -> None:
    link = await connect(await serve(lines(HELLO)), "j")
    waiters = [ended(link, "a") for _ in range(3)]
    link.close()
    assert await asyncio.wait_for(asyncio.gather(*waiters), 10) == [None] * 3
    assert link.lost
    assert await ended(link, "a") is None
    with pytest.raises(LinkLost):
        await link.signal("a", 15)


async def test_a_start_that_was_not_answered_is_not_called_unbegun(serve: Any) -> None:
    link = await connect(await serve(lines(HELLO), b"", hang_up=True), "j")
    with pytest.raises(LinkLost):
        await asyncio.wait_for(link.start("b", b'{"t":"start","s":"b"}\n'), 10)
    link.close()


async def test_a_cancelled_start_stays_open_until_its_answer(serve: Any) -> None:
    never = {"t": "never", "s": "b", "errno": 2, "stage": "exec"}
    link = await connect(await serve(lines(HELLO), b"", lines(never)), "j")
    starting = asyncio.create_task(link.start("b", b'{"t":"start","s":"b"}\n'))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait({starting})
    assert link.unanswered == {"b"}
    other = asyncio.create_task(link.signal("a", 0))
    async with asyncio.timeout(10):
        while link.unanswered:
            await asyncio.sleep(0.01)
    other.cancel()
    link.close()


@pytest.mark.parametrize("change", [{"v": VERSION + 1}, {"journal": "other"}])
async def test_another_version_or_another_journal_is_strange(
    serve: Any, change: dict[str, Any]
) -> None:
    with pytest.raises(Strange):
        await connect(await serve(lines({**HELLO, **change})), "j")


async def test_one_that_hangs_up_at_once_is_lost(serve: Any) -> None:
    with pytest.raises(LinkLost):
        await connect(await serve(b"", hang_up=True), "j")


async def test_nobody_there_is_told_apart_from_nobody_answering(runtime: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await connect(runtime, "j")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime / "socket"))
    assert os.path.exists(runtime / "socket")
    with pytest.raises(ConnectionRefusedError):
        await connect(runtime, "j")


async def test_one_that_does_not_answer_is_silent_until_it_says_anything(serve: Any) -> None:
    link = await connect(await serve(lines(HELLO), b"", b"", lines({"t": "pong"})), "j")
    assert not link.attend()  # only asks
    signalling = asyncio.create_task(link.signal("a", 15))
    await asyncio.sleep(0)
    assert link.attend()
    with pytest.raises(LinkLost):
        await asyncio.wait_for(signalling, 10)
    again = asyncio.create_task(link.signal("a", 15))
    async with asyncio.timeout(10):
        while link.silent:
            await asyncio.sleep(0.01)
    again.cancel()
    link.close()


async def test_one_that_has_nothing_to_do_is_not_asked_for_a_sign_of_life(serve: Any) -> None:
    link = await connect(await serve(lines(HELLO, END)), "j")
    assert [link.attend() for _ in range(3)] == [False] * 3
    link.close()


async def test_what_is_asked_at_one_moment_leaves_in_one_piece(runtime: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(runtime / "socket"))
        listener.listen()
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        connecting = asyncio.create_task(connect(runtime, "j"))
        peer, _ = await loop.sock_accept(listener)
        with peer:
            await loop.sock_recv(peer, 65536)
            await loop.sock_sendall(peer, lines(HELLO))
            link = await connecting
            starts = [
                asyncio.create_task(link.start(name, b"start %s\n" % name.encode()))
                for name in ("b", "c")
            ]
            link.forget("a")
            got = await asyncio.wait_for(loop.sock_recv(peer, 65536), 10)
            assert got == b'start b\nstart c\n{"t":"forget","s":["a"]}\n'
            link.close()
            await asyncio.wait(starts)
            assert all(isinstance(start.exception(), LinkLost) for start in starts)


@pytest.mark.parametrize("mark", ["", "timed out after 3 s", "x" * 5000, "\U0001f600" * 5000])
def test_a_mark_finds_room_in_the_journal(mark: str) -> None:
    kept = shortened(mark)
    assert mark.startswith(kept)
    assert len(json.dumps(kept)) < 500
    assert len(mark) < 100 or len(kept) > 20
