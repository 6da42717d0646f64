"""Batches of events: one answer each, a bad one alone, repeats without effect, runs on record."""

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event

from tests.agent_control_plane.batch import Teller, one_house
from tests.agent_control_plane.kit import House, open_house

USAGE = {"wall_s": 1.5, "user_s": 1.0, "system_s": 0.1, "max_rss_bytes": 4096}


async def held(house: House, **more: Any) -> tuple[Teller, dict[str, Any]]:
    await house.user.submit(**more)
    agent = house.agent()
    return Teller(agent), await agent.one()


async def test_many_tasks_are_started_and_ended_by_one_request(house: House) -> None:
    for _ in range(30):
        await house.user.submit()
    teller = Teller(house.agent())
    tasks = await teller.agent.claim(30)
    batch = []
    for number, task in enumerate(tasks):
        batch.append(teller.event(task, "start", started_at="2026-01-01T00:00:00Z"))
        batch.append(
            teller.event(
                task, "complete", exit_code=number, status="failed" if number else "completed",
                reason="exited", stdout=f"out {number}", usage=USAGE,
            )
        )  # fmt: skip
    assert await teller.codes(*batch) == [0] * 60
    for number, task in enumerate(tasks):
        shown = await house.user.get(task)
        assert shown["status"] == ("failed" if number else "completed")
        assert (shown["exit_code"], shown["stdout"]) == (number, f"out {number}")
        [run] = shown["runs"]
        assert (run["run_no"], run["exit_code"], run["usage"]) == (1, number, USAGE)
        assert run["agent_started_at"] == "2026-01-01T00:00:00.000Z"
        assert run["started_at"] == shown["started_at"] == "2023-11-14T22:13:20.000Z"


async def test_a_batch_takes_as_many_statements_however_many_tasks_are_in_it(
    house: House,
) -> None:
    """What a task costs is a row, not a statement: else the server's CPU is gone first."""
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, text: str, *_: Any) -> None:
        statements.append(text)

    taken: list[int] = []
    teller = Teller(house.agent())
    for number in (2, 40):
        for _ in range(number):
            await house.user.submit()
        tasks = await teller.agent.claim(number)
        batch = [
            teller.event(task, kind, **more)
            for task in tasks
            for kind, more in (("start", {}), ("complete", {"exit_code": 0, "stdout": "x"}))
        ]
        statements.clear()
        event.listen(Engine, "before_cursor_execute", note)
        try:
            assert set(await teller.codes(*batch)) == {0}
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        taken.append(len(statements))
    assert taken[0] == taken[1] <= 10, statements


async def test_one_bad_event_takes_no_other_with_it(house: House) -> None:
    teller, task = await held(house)
    good = teller.event(task, "start")
    bad: list[Any] = [
        {**teller.event(task, "complete"), "exit_code": "0"},
        teller.event(task, "no_such_kind"),
        {"kind": "start"},
        None,
        "complete",
        {**teller.event(task, "complete"), "stdout_base64": "not base64!"},
        {**teller.event(task, "start"), "at": "yesterday"},
        {**teller.event(task, "start"), "seq": -1},
    ]
    end = teller.event(task, "complete", exit_code=0)
    results = await teller.tell(*bad, good, end)
    assert [each["code"] for each in results] == [30005] * len(bad) + [0, 0]
    assert "exit_code" in results[0]["message"]
    assert "kind" in results[1]["message"]
    assert (await house.user.get(task))["status"] == "completed"


async def test_events_of_tasks_and_attempts_that_are_not_there_are_refused_alone(
    house: House,
) -> None:
    teller, task = await held(house)
    _, other = await held(house)
    lost = {**task, "attempt_id": "lost"}
    none = {**task, "id": "no-such-task", "attempt_id": "none"}
    crossed = {**task, "attempt_id": other["attempt_id"]}
    strange = [teller.event(each, "start") for each in (lost, none, crossed)]
    assert await teller.codes(*strange, teller.event(task, "start")) == [30001, 30004, 30001, 0]
    thief = Teller(house.agent("2"))
    assert await thief.codes(thief.event(task, "complete", exit_code=0)) == [30001]
    assert (await house.user.get(task))["status"] == "running"


async def test_what_is_not_above_the_last_of_its_stream_is_done_already(house: House) -> None:
    teller, task = await held(house)
    first, end = (
        teller.event(task, "start"),
        teller.event(task, "complete", exit_code=3, stdout="x"),
    )
    await teller.tell(first, end)
    before = house.rows(task)
    house.clock.jump_wall(5)
    assert await teller.codes(first, end, {**end, "exit_code": 0}, end) == [0] * 4
    assert house.rows(task) == before


async def test_a_start_told_behind_the_run_revives_a_lease_that_is_over(house: House) -> None:
    teller, task = await held(house)
    house.clock.jump_wall(301)
    assert (await teller.agent.start(task))[0] == 30003
    assert await teller.codes(teller.event(task, "start")) == [0]
    shown = await house.user.get(task)
    assert (shown["status"], shown["unreachable_since"]) == ("running", None)


async def test_a_renewal_in_a_batch_carries_the_lease(house: House) -> None:
    teller, task = await held(house)
    house.clock.jump_wall(100)
    [result] = await teller.tell(teller.passing(task, "renew", extend_sec=300))
    assert result == {
        "code": 0,
        "message": "",
        "lease_sec": 300,
        "lease_expires_at": "2023-11-14T22:20:00.000Z",
        "regrant_at": "2023-11-14T22:30:00.000Z",
    }


async def test_progress_in_a_batch_is_shown(house: House) -> None:
    teller, task = await held(house)
    far = teller.passing(task, "progress", percent=40, message="epoch 4\0")
    assert await teller.codes(teller.event(task, "start"), far) == [0, 0]
    shown = await house.user.get(task)
    assert (shown["progress"], shown["progress_message"]) == (40, "epoch 4�")


async def test_runs_that_others_follow_stay_on_record(house: House) -> None:
    teller, task = await held(house, max_retries=2)
    again = {"next_run_at": "2023-11-14T22:14:20Z", "at": "2023-11-14T22:13:20Z"}
    for number in (1, 2):
        began = teller.event(task, "start", run_no=number)
        over = teller.event(
            task, "run", run_no=number, exit_code=number, reason="exited", stdout=f"of {number}",
            usage=USAGE, truncated={"stdout": 0, "stderr": None}, **again,
        )  # fmt: skip
        assert await teller.codes(began, over) == [0, 0]
        shown = await house.user.get(task)
        assert (shown["status"], shown["retry_count"]) == ("assigned", number)
        assert shown["next_run_at"] == "2023-11-14T22:14:20.000Z"
        assert [run["exit_code"] for run in shown["runs"]] == list(range(1, number + 1))
        house.clock.jump_wall(1)
        again = {"next_run_at": "2023-11-14T22:14:20Z", "at": "2023-11-14T22:13:21Z"}
    assert await teller.codes(teller.event(task, "start", run_no=3)) == [0]
    shown = await house.user.get(task)
    assert (shown["status"], shown["next_run_at"], len(shown["runs"])) == ("running", None, 3)
    await teller.tell(teller.event(task, "complete", run_no=3, exit_code=0, stdout="of 3"))
    shown = await house.user.get(task)
    assert [(run["run_no"], run["exit_code"]) for run in shown["runs"]] == [(1, 1), (2, 2), (3, 0)]
    assert shown["runs"][0]["truncated"] == {"stdout": 0, "stderr": None}
    assert (shown["stdout"], shown["retry_count"]) == ("of 3", 2)
    for number in (1, 2, 3):
        _, piece = await house.user.call("GET", f"/{task['id']}/logs", params={"run": number})
        assert (piece["data"], piece["eof"]) == (f"of {number}", True)


async def test_a_preempted_run_is_no_retry(house: House) -> None:
    teller, task = await held(house)
    yields = teller.event(task, "run", reason="preempted", signal="SIGTERM")
    assert await teller.codes(teller.event(task, "start"), yields) == [0, 0]
    shown = await house.user.get(task)
    assert (shown["status"], shown["retry_count"]) == ("preempted", 0)
    assert [run["reason"] for run in shown["runs"]] == ["preempted"]
    assert await teller.codes(teller.event(task, "start", run_no=2)) == [0]
    assert (await house.user.get(task))["status"] == "running"


async def test_a_task_cancelled_between_two_runs_has_no_run_more(house: House) -> None:
    teller, task = await held(house, max_retries=1)
    over = teller.event(task, "run", exit_code=1)
    end = teller.event(task, "complete", status="cancelled", reason="cancelled", exit_code=None)
    assert await teller.codes(teller.event(task, "start"), over, end) == [0, 0, 0]
    shown = await house.user.get(task)
    assert (shown["status"], len(shown["runs"]), shown["next_run_at"]) == ("cancelled", 1, None)


@pytest.mark.parametrize("status", ["suspended", "preempted", "assigned"])
async def test_a_task_comes_back_from_a_lost_lease_as_what_it_was(
    house: House, status: str
) -> None:
    teller, task = await held(house)
    await teller.tell(teller.event(task, "start"))
    if status == "suspended":
        await teller.tell(teller.event(task, "state", status="suspended"))
    else:
        reason = "preempted" if status == "preempted" else "exited"
        await teller.tell(teller.event(task, "run", reason=reason))
    assert (await house.user.get(task))["status"] == status
    await house.pass_time(1000)
    assert (await house.user.get(task))["status"] == "pending"
    assert await teller.codes(teller.passing(task, "renew")) == [0]
    assert (await house.user.get(task))["status"] == status


async def test_an_attempt_with_a_run_on_record_cannot_be_given_back(house: House) -> None:
    teller, task = await held(house)
    await teller.tell(teller.event(task, "start"), teller.event(task, "run", exit_code=1))
    assert (await teller.agent.tell(task, "release"))[0] == 30014


async def test_a_suspended_run_is_shown_and_goes_on(house: House) -> None:
    teller, task = await held(house)
    early = teller.event(task, "state", status="suspended")
    assert await teller.codes(early) == [30014]  # nothing runs
    for status in ("suspended", "running"):
        began, shift = teller.event(task, "start"), teller.event(task, "state", status=status)
        assert await teller.codes(began, shift) == [0, 0]
        assert (await house.user.get(task))["status"] == status


async def test_output_that_is_no_text_comes_in_base64_and_is_kept_to_the_byte(
    house: House,
) -> None:
    teller, task = await held(house)
    data = bytes(range(256))
    encoded = base64.b64encode(data).decode()
    end = teller.event(task, "complete", exit_code=0, stdout_base64=encoded, stderr="plain")
    assert await teller.codes(teller.event(task, "start"), end) == [0, 0]
    shown = await house.user.get(task)
    assert shown["stderr"] == "plain"
    assert shown["stdout"].startswith("�\x01\x02")
    _, piece = await house.user.call("GET", f"/{task['id']}/logs")
    assert (piece["encoding"], base64.b64decode(piece["data"])) == ("base64", data)


async def test_output_of_earlier_runs_is_cut_and_of_old_ones_forgotten(house: House) -> None:
    teller, task = await held(house)
    for number in range(1, 13):
        began = teller.event(task, "start", run_no=number)
        over = teller.event(task, "run", run_no=number, stdout=f"{number}" + "x" * 100_000 + "end")
        await teller.tell(began, over)
    path = f"/{task['id']}/logs"
    _, piece = await house.user.call("GET", path, params={"run": 2})
    assert (piece["data"], piece["eof"]) == ("", True)
    _, piece = await house.user.call("GET", path, params={"run": 12})
    assert (len(piece["data"]), piece["data"][:3], piece["eof"]) == (32768, "12x", False)
    _, rest = await house.user.call("GET", path, params={"run": 12, "offset": 32768})
    assert (rest["dropped"], rest["offset"]) == (100_005 - 65536, 100_005 - 32768)
    assert (rest["data"][-3:], rest["next_offset"], rest["eof"]) == ("end", 100_005, True)
    last = (await house.user.get(task))["runs"][-1]
    assert last["truncated"] == {"stdout": 100_005 - 65536, "stderr": 0}


async def test_too_many_events_are_to_be_halved(house: House) -> None:
    teller, task = await held(house)
    code, data = await teller.call(*[teller.passing(task, "renew")] * 101)
    assert code == 30015
    assert "100" in data["message"]
    assert await teller.tell() == []


async def test_a_server_without_events_says_so_and_has_no_such_route(tmp_path: Path) -> None:
    async with open_house(tmp_path / "server.db", extensions=()) as house:
        told = await house.agent().register(capabilities=["events"])
        assert told["capabilities"] == []
        teller, task = await held(house)
        assert (await teller.call(teller.event(task, "start")))[0] == 30016
        assert (await teller.agent.start(task))[0] == 0


async def test_single_calls_and_events_of_one_attempt_mix(house: House) -> None:
    """An agent falls back where the word is dropped, and takes it up again."""
    teller, task = await held(house)
    assert (await teller.agent.start(task))[0] == 0
    assert await teller.codes(teller.event(task, "start")) == [0]
    assert len((await house.user.get(task))["runs"]) == 1
    assert await teller.codes(teller.event(task, "run", exit_code=1)) == [0]
    assert await teller.codes(teller.event(task, "start", run_no=2)) == [0]
    assert (await teller.agent.complete(task, 4))[0] == 0
    assert await teller.codes(teller.event(task, "complete", run_no=2, exit_code=4)) == [0]
    shown = await house.user.get(task)
    assert [run["exit_code"] for run in shown["runs"]] == [1, 4]


async def test_an_event_that_the_database_cannot_keep_is_refused_alone(house: House) -> None:
    def refuse_thirteen(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(
                "CREATE TRIGGER no_thirteen BEFORE UPDATE ON attempts WHEN new.exit_code = 13 "
                "BEGIN SELECT RAISE(ABORT, 'no_thirteen'); END"
            )
        else:
            connection.exec_driver_sql(
                "ALTER TABLE attempts ADD CONSTRAINT no_thirteen CHECK (exit_code <> 13)"
            )

    await house.plane.db.write(refuse_thirteen)
    tasks = [await held(house) for _ in range(3)]
    teller = tasks[0][0]
    ends = [
        teller.event(task, "complete", exit_code=code)
        for (_, task), code in zip(tasks, (0, 13, 14), strict=True)
    ]
    results = await teller.tell(*ends)
    assert [each["code"] for each in results] == [0, 30005, 0]
    assert "no_thirteen" in results[1]["message"]
    shown = [(await house.user.get(task))["status"] for _, task in tasks]
    assert shown == ["completed", "assigned", "failed"]


@st.composite
def stories(draw: st.DrawFn) -> list[list[int]]:
    """How the events of one life are told: in batches, each repeated, cut and mixed at will."""
    length = draw(st.integers(1, 9))
    batches, told = [], 0
    while told < length:
        reach = draw(st.integers(told + 1, length))
        again = draw(st.lists(st.integers(0, reach - 1), max_size=4))
        fresh = list(range(draw(st.integers(0, told)), reach))
        batches.append([n for n in again if n < told] + fresh + again)
        told = reach
    return batches


LIFE: list[tuple[str, dict[str, Any]]] = [
    ("start", {"run_no": 1}),
    ("state", {"run_no": 1, "status": "suspended"}),
    ("state", {"run_no": 1, "status": "running"}),
    ("run", {"run_no": 1, "exit_code": 1, "reason": "exited", "stdout": "one"}),
    ("start", {"run_no": 2}),
    ("run", {"run_no": 2, "reason": "preempted", "stderr": "two"}),
    ("start", {"run_no": 3}),
    ("complete", {"run_no": 3, "exit_code": 5, "status": "failed", "stdout": "three"}),
    ("complete", {"run_no": 3, "exit_code": 0, "status": "completed"}),  # too late
]


def test_however_events_are_repeated_and_reordered_behind_the_newest_they_count_once(
    tmp_path: Path,
) -> None:
    """The same rows as if each had been told once, in order."""

    def bare(rows: list[Any], task: dict[str, Any]) -> str:
        rows = [list(row) for row in rows]
        rows[0][0] = 0  # seq of the task
        return repr(rows).replace(task["id"], "T").replace(task["attempt_id"], "A")

    async def lives(house: House, batches: list[list[int]]) -> None:
        length = max(max(batch) for batch in batches) + 1
        seen = []
        for story in (batches, [[n] for n in range(length)]):
            teller, task = await held(house)
            life = [teller.event(task, kind, **more) for kind, more in LIFE]
            for batch in story:
                await teller.tell(*(life[n] for n in batch))
            seen.append(bare(house.rows(task), task))
            await teller.agent.complete(task)  # or it would be held for ever
        assert seen[0] == seen[1]

    with one_house(tmp_path / "server.db") as (house, runner):

        @settings(max_examples=12, deadline=None, database=None)
        @given(stories())
        def check(batches: list[list[int]]) -> None:
            runner.run(lives(house, batches))

        check()
