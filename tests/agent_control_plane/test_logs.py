"""Output while a task runs: appended by offset, kept as head and tail, followed to its end."""

import asyncio
import base64
import contextlib
import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent_control_plane.batch import Teller, one_house
from tests.agent_control_plane.kit import Agent, House, open_house

SPEAKS = ["events", "wait", "commands", "logs"]


async def running(house: House, **more: Any) -> tuple[Teller, dict[str, Any]]:
    await house.user.submit(**more)
    agent = house.agent()
    await agent.register(capabilities=SPEAKS)
    teller, task = Teller(agent), await agent.one()
    await teller.tell(teller.event(task, "start"))
    return teller, task


async def log(
    agent: Agent, task: dict[str, Any], offset: int, data: bytes, **more: Any
) -> tuple[int, dict[str, Any]]:
    body = {"run_no": 1, "stream": "stdout", "offset": offset, **more}
    return await agent.tell(task, "log", data=base64.b64encode(data).decode(), **body)


async def piece(house: House, task: dict[str, Any], offset: int = 0, **more: Any) -> dict[str, Any]:
    path = f"/{task['id']}/logs"
    code, data = await house.user.call("GET", path, params={"offset": offset, **more})
    assert code == 0, data
    return data


def content(told: dict[str, Any]) -> bytes:
    text: str = told["data"]
    return base64.b64decode(text) if told["encoding"] == "base64" else text.encode()


async def follow(
    house: House, task: dict[str, Any], offset: int = 0, **more: Any
) -> tuple[dict[int, bytes], dict[str, Any]]:
    """Everything up to the end, by the offset of each piece, and the last answer."""
    found: dict[int, bytes] = {}
    while True:
        told = await piece(house, task, offset, **more)
        if told["data"]:
            found[told["offset"]] = content(told)
        assert told["dropped"] is None or told["offset"] - offset == told["dropped"]
        offset = told["next_offset"]
        if told["eof"]:
            return found, told


async def until_following(house: House) -> None:
    """Returns when somebody reads along, and the server has noted it."""
    async with asyncio.timeout(20):
        while house.place.query("SELECT watched_until FROM tasks")[0][0] is None:
            await asyncio.sleep(0.005)


async def test_what_is_appended_can_be_read_at_once(house: House) -> None:
    teller, task = await running(house)
    taken = await log(teller.agent, task, 0, b"one ")
    assert taken == (0, {"next_offset": 4, "watched": False})
    assert (await log(teller.agent, task, 4, b"two"))[1]["next_offset"] == 7
    told = await piece(house, task)
    assert (told["data"], told["next_offset"], told["eof"]) == ("one two", 7, False)
    assert (await piece(house, task, 4))["data"] == "two"
    assert (await piece(house, task, 7))["data"] == ""
    assert (await piece(house, task, stream="stderr"))["data"] == ""


async def test_a_repeat_is_taken_and_changes_nothing(house: House) -> None:
    teller, task = await running(house)
    await log(teller.agent, task, 0, b"abcdef")
    before = kept(house)
    assert (await log(teller.agent, task, 0, b"abcdef"))[1]["next_offset"] == 6
    assert (await log(teller.agent, task, 2, b"cd"))[1]["next_offset"] == 6
    assert kept(house) == before
    assert (await log(teller.agent, task, 4, b"efgh"))[1]["next_offset"] == 8
    assert (await piece(house, task))["data"] == "abcdefgh"


def kept(house: House) -> list[Any]:
    return [
        house.place.query("SELECT * FROM pieces ORDER BY stream, starts"),
        house.place.query("SELECT * FROM streams ORDER BY stream"),
    ]


async def test_a_gap_is_refused_with_the_offset_to_go_on_from(house: House) -> None:
    teller, task = await running(house)
    await log(teller.agent, task, 0, b"abc")
    code, data = await log(teller.agent, task, 5, b"xyz")
    assert code == 30005
    assert "3" in data["message"]
    reply = await teller.agent.client.post(
        f"/api/v1/agent/tasks/{task['id']}/log",
        headers={"X-Agent-Token": "agent-token-0123456789", "X-Agent-Protocol": "1"},
        json={
            "agent_id": "agent-1", "attempt_id": task["attempt_id"], "stream": "stdout",
            "offset": 5, "data": "eHl6",
        },
    )  # fmt: skip
    assert reply.json()["data"] == {"next_offset": 3}


async def test_bytes_that_are_gone_are_passed_over_and_told(house: House) -> None:
    teller, task = await running(house)
    await log(teller.agent, task, 0, b"abc")
    assert (await log(teller.agent, task, 10, b"xyz", dropped=7))[1]["next_offset"] == 13
    assert (await log(teller.agent, task, 10, b"xyz", dropped=7))[1]["next_offset"] == 13
    assert (await log(teller.agent, task, 14, b"!", dropped=2))[1]["next_offset"] == 15
    told = await piece(house, task)
    assert (told["data"], told["next_offset"], told["dropped"]) == ("abc", 3, 0)
    told = await piece(house, task, 3)
    assert (told["data"], told["offset"], told["dropped"]) == ("xyz", 10, 7)
    told = await piece(house, task, 13)
    assert (told["data"], told["offset"], told["dropped"]) == ("!", 14, 1)


async def test_a_character_is_never_cut(house: House) -> None:
    teller, task = await running(house)
    word = "é€😀".encode()
    for number in range(len(word)):
        await log(teller.agent, task, number, word[number : number + 1])
        told = await piece(house, task)
        assert told["encoding"] == "utf-8"
        assert word.decode().startswith(told["data"])
    assert told["data"] == "é€😀"
    await log(teller.agent, task, len(word), b"\xf0\x9f")
    assert (await piece(house, task))["data"] == "é€😀"
    await teller.tell(teller.event(task, "complete", exit_code=0))
    told = await piece(house, task, len(word))
    assert (told["encoding"], content(told), told["eof"]) == ("base64", b"\xf0\x9f", True)


async def test_bytes_that_are_no_text_come_in_base64(house: House) -> None:
    teller, task = await running(house)
    for data in (b"a\0b", b"\xff\xfe", bytes(range(256))):
        offset = (await piece(house, task, 0))["next_offset"]
        await log(teller.agent, task, offset, data)
        told = await piece(house, task, offset)
        assert (told["encoding"], content(told)) == ("base64", data)


async def test_head_and_tail_are_kept_within_the_bound(tmp_path: Path) -> None:
    async with open_house(tmp_path / "server.db", output_kept=64 * 1024) as house:
        teller, task = await running(house)
        whole = b"".join(b"%07d\n" % number for number in range(40_000))
        for at in range(0, len(whole), 20_000):
            taken = await log(teller.agent, task, at, whole[at : at + 20_000])
            assert taken[0] == 0
        sizes = house.place.query("SELECT sum(length(data)) FROM pieces")
        assert 64 * 1024 <= sizes[0][0] <= 64 * 1024 + 2 * 20_000
        await teller.tell(teller.event(task, "complete", exit_code=0))
        found, last = await follow(house, task)
        assert last["next_offset"] == len(whole)
        for offset, data in found.items():
            assert whole[offset : offset + len(data)] == data
        assert len(found[0]) >= 32 * 1024
        digest = hashlib.sha256(b"".join(found.values())).hexdigest()
        assert last["sha256"] == digest
        shown = (await house.user.get(task))["stdout"]
        assert "\n...[truncated, " in shown
        assert shown.startswith("0000000\n")
        assert shown.endswith("0039999\n")


async def test_the_result_takes_the_place_of_what_came_while_it_ran(house: House) -> None:
    """The same offsets go on meaning the same bytes, so a follower can finish."""
    teller, task = await running(house)
    await log(teller.agent, task, 0, b"x" * 50_000)
    await log(teller.agent, task, 0, b"kept in pieces", stream="stderr")
    result = "x" * 1000 + "\n...[truncated, 98000 bytes dropped]\n" + "y" * 1000
    end = teller.event(
        task, "complete", exit_code=0, stdout=result, truncated={"stdout": 98_000, "stderr": 0}
    )
    assert await teller.codes(end) == [0]
    found, last = await follow(house, task, 50_000)
    assert (found, last["next_offset"]) == ({99_000: b"y" * 1000}, 100_000)
    found, last = await follow(house, task)
    assert found == {0: b"x" * 1000, 99_000: b"y" * 1000}
    assert last["sha256"] == hashlib.sha256(b"x" * 1000 + b"y" * 1000).hexdigest()
    assert (await follow(house, task, stream="stderr"))[0] == {0: b"kept in pieces"}
    shown = await house.user.get(task)
    assert (shown["stdout"], shown["stderr"]) == (result, "kept in pieces")
    assert [row[2] for row in kept(house)[1]] == ["stderr"]
    assert (await house.user.call("DELETE", f"/{task['id']}"))[0] == 0
    assert kept(house) == [[], []]


async def test_a_result_too_large_for_one_request_arrives_in_pieces(house: House) -> None:
    teller, task = await running(house)
    whole = b"0123456789abcde\n" * 64 * 1024  # 1 MiB
    offset = 0
    for at in range(0, len(whole), 256 * 1024):
        part = whole[at : at + 256 * 1024]
        offset = (await log(teller.agent, task, at, part))[1]["next_offset"]
    digest = hashlib.sha256(whole).hexdigest()
    code, data = await log(teller.agent, task, offset, b"", eof=True, sha256=digest)
    assert (code, data["next_offset"]) == (0, len(whole))
    await teller.tell(teller.event(task, "complete", exit_code=0))
    assert (await house.user.get(task))["stdout"].encode() == whole
    found, last = await follow(house, task)
    assert b"".join(found.values()) == whole
    assert last["sha256"] == digest


async def test_output_that_is_not_what_its_agent_kept_is_to_be_sent_anew(house: House) -> None:
    teller, task = await running(house)
    await log(teller.agent, task, 0, b"wrong")
    digest = hashlib.sha256(b"right").hexdigest()
    code, data = await log(teller.agent, task, 5, b"", eof=True, sha256=digest)
    assert (code, "sha256" in data["message"]) == (30005, True)
    assert kept(house) == [[], []]
    end = {"eof": True, "sha256": digest}
    assert (await log(teller.agent, task, 0, b"right", **end))[1]["next_offset"] == 5
    assert (await log(teller.agent, task, 0, b"right", **end))[0] == 0


@pytest.mark.parametrize("ended", ["complete", "cancelled away", "another agent"])
async def test_an_attempt_that_is_over_appends_nothing(house: House, ended: str) -> None:
    teller, task = await running(house, disconnect_grace=0)
    agent, code = teller.agent, 30002
    if ended == "complete":
        await teller.tell(teller.event(task, "complete", exit_code=0))
    elif ended == "cancelled away":
        await house.user.cancel(task)
        await house.pass_time(300)
    else:
        agent, code = house.agent("2"), 30001
    assert (await log(agent, task, 0, b"late"))[0] == code
    assert kept(house) == [[], []]


async def test_each_run_has_its_own_streams(house: House) -> None:
    teller, task = await running(house, max_retries=1)
    await log(teller.agent, task, 0, b"of run 1")
    await teller.tell(teller.event(task, "run", exit_code=1))
    assert (await log(teller.agent, task, 8, b"late"))[0] == 30002
    assert (await log(teller.agent, task, 0, b"of run 2", run_no=2))[0] == 0  # before its start
    assert (await piece(house, task, run=2))["data"] == "of run 2"
    await teller.tell(teller.event(task, "start", run_no=2))
    assert (await piece(house, task))["data"] == "of run 2"
    first = await piece(house, task, run=1)
    assert (first["data"], first["eof"]) == ("of run 1", True)


async def test_pieces_outlive_a_run_whose_end_nobody_tells(house: House) -> None:
    teller, task = await running(house, disconnect_grace=0)
    await log(teller.agent, task, 0, b"last words")
    await house.pass_time(300)
    await house.agent("2").one()
    told = await piece(house, task, run=1)
    assert (told["data"], told["eof"]) == ("last words", True)


# --- followers


async def test_a_follower_is_answered_when_there_is_more(house: House) -> None:
    teller, task = await running(house)
    waiting = asyncio.create_task(piece(house, task, wait_sec=30))
    await until_following(house)
    [command] = (await teller.call())[1]["commands"]
    assert (command["action"], command["attempt_id"]) == ("watch", task["attempt_id"])
    taken = await log(teller.agent, task, 0, b"more")
    assert taken == (0, {"next_offset": 4, "watched": True})
    assert (await waiting)["data"] == "more"
    house.clock.jump_wall(100)
    assert (await log(teller.agent, task, 4, b"!"))[1]["watched"] is False


async def test_a_follower_is_answered_when_the_run_ends(house: House) -> None:
    teller, task = await running(house)
    waiting = asyncio.create_task(piece(house, task, wait_sec=30))
    await until_following(house)
    await teller.tell(teller.event(task, "complete", exit_code=0, stdout="all"))
    told = await waiting
    assert (told["data"], told["eof"]) == ("all", True)


async def test_an_end_just_before_a_follower_is_known_is_not_missed(tmp_path: Path) -> None:
    """The follower looks, then the run ends, then the server notes that there is a follower."""
    async with open_house(tmp_path / "server.db") as house:
        teller, task = await running(house)
        with contextlib.closing(sqlite3.connect(house.path)) as other:
            other.execute("BEGIN IMMEDIATE")
            end = teller.event(task, "complete", exit_code=0)
            ending = asyncio.create_task(teller.tell(end))
            for _ in range(5):
                assert (await house.client.get("/health")).status_code == 200
            following = asyncio.create_task(piece(house, task, wait_sec=30))
            async with asyncio.timeout(4):
                while house.plane.followers.hanging == 0:
                    await asyncio.sleep(0.005)
            for _ in range(5):
                assert (await house.client.get("/health")).status_code == 200
            other.execute("ROLLBACK")
        await ending
        assert (await following)["eof"] is True


async def test_a_follower_of_a_task_that_waits_sees_it_begin(house: House) -> None:
    """Its agent is told with the grant that somebody reads along."""
    task = await house.user.submit()
    agent = house.agent()
    await agent.register(capabilities=SPEAKS)
    waiting = asyncio.create_task(piece(house, task, wait_sec=30))
    await until_following(house)
    _, data = await agent.call("tasks/claim", machine_id=agent.machine)
    [held], [command] = data["tasks"], data["commands"]
    assert command["action"] == "watch"
    await log(agent, held, 0, b"begun")
    assert (await waiting)["data"] == "begun"


async def test_a_follower_whose_time_is_up_is_told_nothing_new(house: House) -> None:
    _, task = await running(house)
    waiting = asyncio.create_task(piece(house, task, wait_sec=30))
    await until_following(house)
    await house.clock.until_sleeping(2)
    await house.clock.advance(30)
    told = await waiting
    assert (told["data"], told["next_offset"], told["eof"]) == ("", 0, False)
    assert house.plane.followers.hanging == 0


async def test_a_cancel_of_a_waiting_task_ends_its_followers(house: House) -> None:
    task = await house.user.submit()
    waiting = asyncio.create_task(piece(house, task, wait_sec=30))
    await until_following(house)
    await house.user.cancel(task)
    assert (await waiting)["eof"] is True


async def test_a_server_that_stops_answers_its_followers(house: House) -> None:
    _, task = await running(house)
    waiting = asyncio.create_task(piece(house, task, wait_sec=60))
    await until_following(house)
    house.plane.stop()
    assert (await waiting)["eof"] is False


async def test_a_server_without_logs_has_no_such_route_and_followers_see_the_result(
    tmp_path: Path,
) -> None:
    words = ("events", "wait", "commands")
    async with open_house(tmp_path / "server.db", extensions=words) as house:
        teller, task = await running(house)
        assert (await log(teller.agent, task, 0, b"x"))[0] == 30016
        waiting = asyncio.create_task(piece(house, task, wait_sec=30))
        await until_following(house)
        assert (await teller.call())[1]["commands"] == []
        await teller.tell(teller.event(task, "complete", exit_code=0, stdout="all"))
        assert (await waiting)["data"] == "all"


# --- whatever is printed


async def _tell_a_story(house: House, parts: list[tuple[bytes, bool]], cut: int) -> None:
    """Each part is sent, or dropped; some are sent again; a follower reads along."""
    teller, task = await running(house)
    whole, offset, dropped = b"", 0, 0
    seen: dict[int, bytes] = {}
    at = 0
    for data, sent in parts:
        if sent:
            code, _ = await log(teller.agent, task, offset, data, dropped=dropped)
            assert code == 0
            again = max(0, offset - cut)
            assert (await log(teller.agent, task, again, whole[again:] + data, dropped=again))[
                0
            ] == 0
            dropped = 0
        else:
            dropped += len(data)
        whole += data
        offset += len(data)
        told = await piece(house, task, at)
        seen[told["offset"]] = content(told)
        at = told["next_offset"]
    await teller.tell(teller.event(task, "complete", exit_code=0))
    found, last = await follow(house, task, at)
    for offset, data in (seen | found).items():
        assert whole[offset : offset + len(data)] == data
    kept_bytes, last = await follow(house, task)
    assert last["sha256"] == hashlib.sha256(b"".join(kept_bytes.values())).hexdigest()
    if all(sent for _, sent in parts):
        assert b"".join(kept_bytes.values()) == whole


def test_whatever_is_printed_a_follower_and_the_result_agree(tmp_path: Path) -> None:
    parts = st.lists(
        st.tuples(st.one_of(st.binary(max_size=40), st.text(max_size=10).map(str.encode)),
                  st.sampled_from([True, True, True, False])),
        max_size=6,
    )  # fmt: skip
    with one_house(tmp_path / "server.db") as (house, runner):

        @settings(max_examples=12, deadline=None, database=None)
        @given(parts, st.integers(0, 50))
        def check(told: list[tuple[bytes, bool]], cut: int) -> None:
            runner.run(_tell_a_story(house, told, cut))

        check()
