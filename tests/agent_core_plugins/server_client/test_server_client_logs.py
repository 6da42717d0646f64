"""Output of running tasks: when it is sent, from where on, and what it never holds up."""

import asyncio
import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_core import Answer, Event, EventKind, Key, Outcome, Reason, Status, Task
from agent_core.testing.clock import TurnedClock
from agent_core.testing.http_server import NOT_FOUND, Reply, Request, ScriptedServer, answer
from agent_core_plugins.server_client.logs import (
    EVERY,
    FINISH_LIMIT,
    PIECE,
    PIECES,
    WATCHED_EVERY,
    parted,
    pieces,
)

API = "/api/v1/agent"
LOG, EVENTS = f"{API}/tasks/*/log", f"{API}/events"
REGISTER, HEARTBEAT = f"{API}/register", f"{API}/heartbeat"
LOOPS = 4  # that sleep when nothing is to be done: heartbeat, renew, progress, logs


def running(name: str = "t1", **fields: Any) -> Task:
    given = {"status": Status.RUNNING, "run_no": 1} | fields
    return Task(id=name, attempt_id=f"{name}-1", command="x", source="server_client", **given)


class Shelf:
    """Keeps what it is told of each stream, as a control plane does."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, str], bytearray] = {}
        self.dropped: dict[tuple[str, int, str], list[tuple[int, int]]] = {}
        self.ended: dict[tuple[str, int, str], str | None] = {}  # sha256
        self.watched = False

    def __call__(self, request: Request) -> Reply:
        body = request.json()
        place = (request.path.split("/")[-2], body["run_no"], body["stream"])
        data = base64.b64decode(body["data"])
        assert len(data) <= PIECE
        kept = self.kept.setdefault(place, bytearray())
        start, dropped = body["offset"], body["dropped"]
        if start - dropped > len(kept):
            told = {"next_offset": len(kept), "watched": self.watched}
            return answer(told, code=30005, message="a gap", status=400)
        if start >= len(kept):
            if dropped:
                self.dropped.setdefault(place, []).append((start, dropped))
            kept += b"?" * (start - len(kept)) + data
        elif start + len(data) > len(kept):
            kept += data[len(kept) - start :]
        if body.get("eof"):
            self.ended[place] = body.get("sha256")
        return answer({"next_offset": len(kept), "watched": self.watched})

    def text(self, name: str = "t1", run_no: int = 1, stream: str = "stdout") -> bytes:
        return bytes(self.kept.get((name, run_no, stream), b""))


@pytest.fixture
def shelf(server: ScriptedServer) -> Shelf:
    shelf = Shelf()
    server.on(REGISTER, answer({"capabilities": ["events", "commands", "logs"]}))
    server.on(EVENTS, taking)
    server.on(LOG, shelf)
    return shelf


def taking(request: Request) -> Reply:
    return answer({"results": [{"code": 0} for _ in request.json()["events"]]})


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def asked(server: ScriptedServer) -> int:
    return len(server.asked(LOG))


def watch(site: Any, name: str = "t1", number: int = 1) -> None:
    told = {"id": f"w{number}", "action": "watch", "task_id": name, "attempt_id": f"{name}-1"}
    assert site.client._contact.hear([told])


async def test_what_nobody_watches_is_sent_now_and_then_if_there_is_news(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    clock = TurnedClock()
    async with opened(clock=clock) as site:
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"one\n"
        site.agent.printed[task.key, "stderr"] = b"\xff\0"
        await clock.until_sleeping(LOOPS)
        await clock.advance(EVERY - 0.1)
        assert asked(server) == 0
        await clock.advance(0.1)
        await until(lambda: shelf.text() == b"one\n")
        await until(lambda: shelf.text(stream="stderr") == b"\xff\0")
        await clock.until_sleeping(LOOPS)
        for _ in range(3):
            await clock.advance(EVERY)
            await clock.until_sleeping(LOOPS)
        assert asked(server) == 2
        site.agent.printed[task.key, "stdout"] = b"one\ntwo\n"
        await clock.advance(EVERY)
        await until(lambda: shelf.text() == b"one\ntwo\n")
        body = server.asked(LOG)[2].json()
    assert {name: body[name] for name in ("attempt_id", "run_no", "stream", "offset")} == {
        "attempt_id": "t1-1",
        "run_no": 1,
        "stream": "stdout",
        "offset": 4,
    }
    assert base64.b64decode(body["data"]) == b"two\n"


async def test_what_somebody_watches_is_sent_as_it_comes_until_he_leaves(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    clock = TurnedClock()
    shelf.watched = True
    async with opened(clock=clock) as site:
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"a"
        await clock.until_sleeping(LOOPS)
        watch(site)
        await until(lambda: shelf.text() == b"a")
        for text in (b"ab", b"abc"):
            await clock.until_sleeping(LOOPS)
            site.agent.printed[task.key, "stdout"] = text
            await clock.advance(WATCHED_EVERY)
            await until(lambda text=text: shelf.text() == text)
        await clock.until_sleeping(LOOPS)
        shelf.watched = False
        site.agent.printed[task.key, "stdout"] = b"abcd"
        await clock.advance(WATCHED_EVERY)
        await until(lambda: shelf.text() == b"abcd")
        await clock.until_sleeping(LOOPS)
        site.agent.printed[task.key, "stdout"] = b"abcde"
        await clock.advance(EVERY - 1)
        assert shelf.text() == b"abcd"
        await clock.advance(1)
        await until(lambda: shelf.text() == b"abcde")


async def test_a_run_that_begins_after_somebody_came_to_read_it_is_sent_as_it_comes(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    """As a watch that comes with the task's grant, and each run that follows one that was read."""
    clock = TurnedClock()
    shelf.watched = True
    async with opened(clock=clock) as site:
        await clock.until_sleeping(LOOPS)
        watch(site)
        await clock.until_sleeping(LOOPS)
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"a"
        await clock.advance(WATCHED_EVERY)
        await until(lambda: shelf.text() == b"a")


async def test_a_watch_is_answered_also_where_nothing_runs(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    async with opened() as site:
        await server.wait_for(HEARTBEAT)
        site.agent.add(running())
        watch(site, "t1", 1)
        watch(site, "gone", 2)
        said: list[tuple[str, int, str]] = []
        while len(said) < 2:
            await asyncio.sleep(0)
            said = [
                (each["id"], each["code"], each["message"])
                for request in server.asked(EVENTS)
                for each in request.json()["events"]
                if each["kind"] == "command"
            ]
    assert said == [("w1", 0, ""), ("w2", 0, "it does not run now")]


async def test_a_restarted_agent_goes_on_where_the_server_is(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    shelf.kept["t1", 1, "stdout"] = bytearray(b"abc")
    async with opened() as site:
        await server.wait_for(HEARTBEAT)
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"abcdef"
        watch(site)
        await until(lambda: shelf.text() == b"abcdef")


async def test_a_server_that_lost_what_it_had_is_told_again_what_there_is(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    shelf.watched = True
    async with opened() as site:
        await server.wait_for(HEARTBEAT)
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"abc"
        watch(site)
        await until(lambda: shelf.text() == b"abc")
        shelf.kept.clear()
        site.agent.printed[task.key, "stdout"] = b"abcdef"
        await until(lambda: shelf.text() == b"abcdef")


async def test_bytes_that_are_gone_are_told_as_gone(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    shelf.watched = True
    async with opened() as site:
        await server.wait_for(HEARTBEAT)
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"head"
        watch(site)
        await until(lambda: shelf.text() == b"head")
        site.agent.printed[task.key, "stdout"] = b"head" + b"x" * 96 + b"tail"
        site.agent.forgotten[task.key, "stdout"] = 100
        await until(lambda: shelf.text() == b"head" + b"?" * 96 + b"tail")
    assert shelf.dropped["t1", 1, "stdout"] == [(100, 96)]


async def test_however_much_is_printed_each_round_sends_a_bounded_part(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    clock = TurnedClock()
    async with opened(clock=clock) as site:
        task = site.agent.add(running())
        printed = bytes(range(256)) * (PIECE // 256) * (PIECES + 1)
        site.agent.printed[task.key, "stdout"] = printed
        await clock.until_sleeping(LOOPS)
        await clock.advance(EVERY)
        await until(lambda: len(shelf.text()) == PIECES * PIECE)
        await clock.until_sleeping(LOOPS)
        assert asked(server) == PIECES
        await clock.advance(EVERY)
        await until(lambda: shelf.text() == printed)


@pytest.mark.parametrize(
    "reply",
    [
        answer(code=30001, message="newer", status=409),
        answer(code=30002, message="final", status=409),
        answer(code=30004, message="unknown", status=404),
        answer(code=30005, message="no", status=400),
        answer(code=30015, message="too large", status=413),
        answer({}),
        answer({"next_offset": "4"}),
        answer({"next_offset": -1}),
        NOT_FOUND,
    ],
)
async def test_a_server_that_does_not_want_it_is_sent_no_more(
    opened: Any, server: ScriptedServer, shelf: Shelf, reply: Reply
) -> None:
    clock = TurnedClock()
    server.on(LOG, reply)
    async with opened(clock=clock) as site:
        task = site.agent.add(running())
        await clock.until_sleeping(LOOPS)
        for text in (b"a", b"ab"):
            site.agent.printed[task.key, "stdout"] = text
            await clock.advance(EVERY)
            await server.wait_for(LOG)
            await clock.until_sleeping(LOOPS - (reply is NOT_FOUND))
        assert asked(server) == 1
        assert site.agent.cancelled == []


@pytest.mark.parametrize("code", [30013, 30099])
async def test_a_server_that_cannot_take_it_now_is_asked_later(
    opened: Any, server: ScriptedServer, shelf: Shelf, code: int
) -> None:
    clock = TurnedClock()
    server.on(LOG, answer(code=code, message="later", status=503), shelf)
    async with opened(clock=clock) as site:
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"abc"
        await clock.until_sleeping(LOOPS)
        await clock.advance(EVERY)
        await server.wait_for(LOG)
        await clock.until_sleeping(LOOPS)
        await clock.advance(EVERY)
        await until(lambda: shelf.text() == b"abc")


@pytest.mark.parametrize("words", [[], ["events", "wait", "commands"]])
async def test_a_server_without_the_word_is_sent_nothing(
    opened: Any, server: ScriptedServer, shelf: Shelf, words: list[str]
) -> None:
    clock = TurnedClock()
    server.on(REGISTER, answer({"capabilities": words}))
    async with opened(clock=clock) as site:
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"abc"
        await clock.until_sleeping(LOOPS - 1)
        for _ in range(3):
            await clock.advance(EVERY)
            await clock.until_sleeping(LOOPS - 1)
        assert asked(server) == 0


async def test_an_executor_in_trouble_costs_only_its_own_tasks_output(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    clock = TurnedClock()
    async with opened(clock=clock) as site:
        read = site.agent.output

        async def output(key: Key, *asked: Any) -> Any:
            if key.task_id == "t1":
                raise TimeoutError
            return await read(key, *asked)

        site.agent.output = output
        for name in ("t1", "t2"):
            task = site.agent.add(running(name))
            site.agent.printed[task.key, "stdout"] = b"abc"
        await clock.until_sleeping(LOOPS)
        for _ in range(3):
            await clock.advance(EVERY)
            await until(lambda: shelf.text("t2") == b"abc")
            await clock.until_sleeping(LOOPS)
        assert len(site.said("warning")) == 1


# --- the end


def end_of(task: Task, outcome: Outcome, kind: EventKind = EventKind.COMPLETE) -> Event:
    return Event(
        kind=kind,
        key=task.key,
        source="server_client",
        run_no=task.run_no,
        at=0.0,
        seq=1,
        outcome=outcome,
    )


async def test_the_rest_of_what_was_streamed_is_there_before_the_result(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    shelf.watched = True
    async with opened() as site:
        await server.wait_for(HEARTBEAT)
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"abc"
        watch(site)
        await until(lambda: shelf.text() == b"abc")
        site.agent.known[task.key] = replace(task, status=Status.COMPLETED)
        outcome = Outcome(
            reason=Reason.EXITED,
            exit_code=0,
            stdout=b"abcde\n...[truncated, 20 bytes dropped]\nxyz",
            dropped_stdout=20,
            stderr=b"words",
        )
        (receipt,) = await site.client.report([end_of(task, outcome)])
        assert receipt.answer is Answer.TAKEN
    assert shelf.text() == b"abcde" + b"?" * 20 + b"xyz"
    assert shelf.text(stream="stderr") == b"words"
    assert shelf.ended == {
        ("t1", 1, "stdout"): None,  # more may have been sent than was kept
        ("t1", 1, "stderr"): hashlib.sha256(b"words").hexdigest(),
    }
    paths = [each.path.split("/")[-1] for each in server.requests]
    assert paths.index("events", paths.index("log")) > 0
    complete = max(place for place, path in enumerate(paths) if path == "events")
    assert max(place for place, path in enumerate(paths) if path == "log") < complete


async def test_a_run_of_which_nothing_was_streamed_ends_without_it(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    async with opened() as site:
        await server.wait_for(HEARTBEAT)
        task = site.agent.add(running())
        site.client._logs._look(site.agent)
        outcome = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"abc")
        await site.client.report([end_of(task, outcome)])
        assert asked(server) == 0
        assert site.client._logs._runs == {}


async def test_a_slow_upload_holds_up_no_result(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    clock = TurnedClock()
    async with opened(clock=clock) as site:
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"abc"
        await clock.until_sleeping(LOOPS)
        await clock.advance(EVERY)
        await until(lambda: shelf.text() == b"abc")
        await clock.until_sleeping(LOOPS)
        server.on(LOG, Reply(body=b"", gate=asyncio.Event()))
        outcome = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"abcdef")
        reporting = asyncio.create_task(site.client.report([end_of(task, outcome)]))
        await server.wait_for(LOG, 2)
        await clock.until_sleeping(LOOPS + 1)
        await clock.advance(FINISH_LIMIT)
        (receipt,) = await reporting
        assert receipt.answer is Answer.TAKEN


async def test_output_that_no_batch_holds_goes_ahead_whole(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    limits = {"bytes": 500_000}
    server.on(REGISTER, answer({"capabilities": ["events", "logs"], "limits": limits}))
    head, tail = bytes(range(256)) * 2000, b"\xff" * 300_000
    outcome = Outcome(
        reason=Reason.EXITED,
        exit_code=0,
        stdout=head + b"\n...[truncated, 7 bytes dropped]\n" + tail,
        dropped_stdout=7,
        stderr=b"words",
    )
    async with opened() as site:
        (receipt,) = await site.client.report([end_of(running(), outcome)])
        assert receipt.answer is Answer.TAKEN
    assert shelf.text() == head + b"?" * 7 + tail
    assert shelf.text(stream="stderr") == b"words"
    (each,) = server.asked(EVENTS)[0].json()["events"]
    assert "stdout" not in each
    assert "stdout_base64" not in each
    assert each["truncated"] == {"stdout": 7, "stderr": 0}
    assert max(map(len, (request.body for request in server.asked(LOG)))) < 300_000


@pytest.mark.parametrize(
    "reply", [answer(code=30013, message="full", status=503), Reply(status=502), NOT_FOUND]
)
async def test_output_that_no_batch_holds_is_cut_where_it_cannot_go_ahead(
    opened: Any, server: ScriptedServer, shelf: Shelf, reply: Reply
) -> None:
    limits = {"bytes": 500_000}
    server.on(REGISTER, answer({"capabilities": ["events", "logs"], "limits": limits}))
    server.on(LOG, reply)
    outcome = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"x" * 800_000)
    async with opened() as site:
        (receipt,) = await site.client.report([end_of(running(), outcome)])
        assert receipt.answer is Answer.TAKEN
    (each,) = server.asked(EVENTS)[0].json()["events"]
    assert 200_000 < len(each["stdout"]) < 500_000
    assert each["truncated"]["stdout"] > 0


async def test_each_run_of_a_task_has_its_own_output(
    opened: Any, server: ScriptedServer, shelf: Shelf
) -> None:
    shelf.watched = True
    async with opened() as site:
        await server.wait_for(HEARTBEAT)
        task = site.agent.add(running())
        site.agent.printed[task.key, "stdout"] = b"first"
        watch(site)
        await until(lambda: shelf.text() == b"first")
        outcome = Outcome(reason=Reason.EXITED, exit_code=1, stdout=b"first!")
        await site.client.report([end_of(task, outcome, EventKind.RUN)])
        site.agent.known[task.key] = replace(task, run_no=2)
        site.agent.printed[task.key, "stdout"] = b"second"
        watch(site, number=2)
        await until(lambda: shelf.text(run_no=2) == b"second")
        assert shelf.text() == b"first!"


def test_output_is_parted_where_it_was_cut() -> None:
    assert parted(b"abc", 0) == (b"abc", 0, b"")
    assert parted(b"a\n...[truncated, 5 bytes dropped]\nb", 5) == (b"a", 5, b"b")
    assert parted(b"a\n...[truncated, 5 bytes dropped]\nb", 0) == (
        *(b"a\n...[truncated, 5 bytes dropped]\nb", 0),
        b"",
    )
    assert parted(b"whatever", None) is None
    assert parted(b"whatever", 7) is None


@given(st.binary(max_size=40), st.integers(0, 40), st.binary(max_size=40), st.integers(0, 130))
def test_the_pieces_are_what_is_left_and_leave_no_gap_untold(
    head: bytes, gap: int, tail: bytes, offset: int
) -> None:
    stream = head + b"?" * gap + tail
    found = pieces(head, gap, tail, offset)
    told = bytearray(stream[:offset])
    for start, data, dropped in found:
        assert start == max(len(told), offset) + dropped
        told += b"?" * dropped + data
    if tail or offset <= len(head):
        assert bytes(told) == stream[: max(len(told), offset)]
        assert len(told) >= len(head) or offset > len(head)
        assert not tail or len(told) >= min(len(stream), max(offset, len(stream)))
