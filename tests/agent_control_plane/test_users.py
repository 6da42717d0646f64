"""What users do with tasks, and that doing it twice by accident does it once."""

import asyncio
import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.agent_control_plane.kit import House, Place, answer, open_house

DAY = 86400.0


async def finished(house: House, **result: Any) -> dict[str, Any]:
    await house.user.submit(name="done")
    agent = house.agent()
    task = await agent.one()
    await agent.start(task)
    await agent.complete(task, **{"exit_code": 0, **result})
    return task


# --- submit


async def test_an_id_may_be_chosen_once(house: House) -> None:
    task = await house.user.submit(id="training-7")
    assert task["id"] == "training-7"
    before = house.rows(task)
    code, data = await house.user.call("POST", json={"id": "training-7", "command": "other"})
    assert code == 30014
    assert "training-7" in data["message"]
    assert house.rows(task) == before


async def test_a_submit_is_answered_with_what_a_look_finds(house: House) -> None:
    first = await house.user.submit("a")
    whole = await house.user.submit(
        args=["x", "é"],
        exec=True,
        env={"A": "b"},
        timeout=7,
        retry_delay=0.5,
        priority=2,
        max_retries=3,
        machine_id="m-9",
        disconnect_grace=60,
        labels={"b": "2", "a": "1"},
        resources={"gpus": 1, "gpu_memory": "20GiB"},
        user="u",
        executor="slow",
        name="n",
        workdir="/srv",
        group_id="g",
    )
    waiting = await house.user.submit("b", depends_on=[first["id"]])
    cancelled = await house.user.submit("c", key="k")
    await house.user.cancel(cancelled)
    dead = await house.user.submit("d", depends_on=[cancelled["id"]])
    _, again = await house.user.call("POST", f"/{cancelled['id']}/retry")
    assert [task["status"] for task in (waiting, dead, again)] == ["pending", "failed", "pending"]
    for task in (whole, waiting, dead, again):
        assert await house.user.get(task) == task


async def test_the_same_submit_twice_makes_one_task(house: House) -> None:
    body = {"command": "echo 1", "name": "once"}
    first = await house.user.raw("POST", key="k-1", json=body)
    await house.agent().one()  # what became of it meanwhile is not told
    again = await house.user.raw("POST", key="k-1", json=body)
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert first.status_code == 201
    _, page = await house.user.call("GET")
    assert len(page["tasks"]) == 1


async def test_many_submits_of_one_key_at_once_make_one_task(house: House) -> None:
    tasks = await asyncio.gather(*(house.user.submit("x", key="twin") for _ in range(20)))
    assert len({task["id"] for task in tasks}) == 1
    _, page = await house.user.call("GET")
    assert len(page["tasks"]) == 1


async def test_a_key_with_another_body_is_a_conflict(house: House) -> None:
    await house.user.submit("a", key="k")
    code, data = await house.user.call("POST", key="k", json={"command": "b"})
    assert code == 30014
    assert "Idempotency-Key" in data["message"]


async def test_a_key_is_forgotten_after_a_day(house: House) -> None:
    first = await house.user.submit("a", key="k")
    house.clock.jump_wall(DAY - 1)
    assert (await house.user.submit("a", key="k"))["id"] == first["id"]
    house.clock.jump_wall(1)
    assert (await house.user.submit("b", key="k"))["id"] != first["id"]


async def test_a_key_outlives_its_server(place: Place) -> None:
    async with open_house(place) as house:
        first = await house.user.submit("a", key="k", labels={"site": "b"})
        held = await house.user.submit("b")
        await house.user.cancel(held)
        retried = await house.user.raw("POST", f"/{held['id']}/retry", key="r")
    async with open_house(place) as house:
        assert await house.user.submit("a", key="k", labels={"site": "b"}) == first
        again = await house.user.raw("POST", f"/{held['id']}/retry", key="r")
        assert (again.status_code, again.json()) == (201, retried.json())
        # Each of key, method, path and body makes another request.
        code, _ = await house.user.call("POST", key="k", json={"command": "a"})
        assert code == 30014
        assert (await house.user.call("POST", f"/{first['id']}/retry", key="k"))[0] == 30014
        _, page = await house.user.call("GET")
        assert len(page["tasks"]) == 3


async def test_a_refusal_is_an_answer_of_its_key_too(house: House) -> None:
    running = await house.user.submit()
    path = f"/{running['id']}/retry"
    first = await house.user.raw("POST", path, key="r")
    assert answer(first)[0] == 30014
    await house.user.cancel(running)
    again = await house.user.raw("POST", path, key="r")
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert (await house.user.call("POST", path, key="r-2"))[0] == 0


async def test_a_full_queue_is_never_stored_as_an_answer(tmp_path: Path) -> None:
    async with open_house(tmp_path / "server.db", max_queue=2) as house:
        one = await house.user.submit()
        await house.user.submit()
        reply = await house.user.raw("POST", key="k", json={"command": "x"})
        assert (reply.status_code, answer(reply)[0]) == (503, 30013)
        assert reply.headers["retry-after"]
        await house.user.cancel(one)
        assert (await house.user.submit("x", key="k"))["status"] == "pending"
        assert (await house.user.call("POST", json={"command": "x"}))[0] == 30013


@pytest.mark.parametrize("key", ["", "x" * 256, "é"])
async def test_a_key_that_is_none_is_refused(house: House, key: str) -> None:
    headers = [
        (b"Authorization", f"Bearer {house.plane.settings.user_token}".encode()),
        (b"Idempotency-Key", key.encode()),
    ]
    reply = await house.client.post("/api/v1/tasks", json={"command": "x"}, headers=headers)
    code, data = answer(reply)
    assert code == 30005
    assert data["message"].startswith("Idempotency-Key")


# --- list


async def test_tasks_are_listed_newest_first_page_by_page(house: House) -> None:
    ids = [(await house.user.submit())["id"] for _ in range(7)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        _, page = await house.user.call("GET", params={"limit": 3, **after})
        seen += [task["id"] for task in page["tasks"]]
        if page["next_cursor"] is None:
            break
        after = {"after": page["next_cursor"]}
        ids.append((await house.user.submit())["id"])  # a newer one disturbs no page
    assert seen == ids[:7][::-1]


async def test_the_list_is_filtered(house: House) -> None:
    await house.user.submit(name="Train-1", machine_id="machine-9")
    await house.user.submit(name="train-2")
    await house.user.submit(name="train_3")
    await house.user.submit(name="100%")
    taken = await house.agent("1").one()

    async def names(*params: tuple[str, str]) -> set[str]:
        code, page = await house.user.call("GET", params=params)
        assert code == 0, page
        return {task["name"] for task in page["tasks"]}

    assert taken["name"] == "train-2"
    assert await names(("name", "train")) == {"train-2", "train_3"}
    assert await names(("name", "train_")) == {"train_3"}
    assert await names(("name", "100%")) == {"100%"}
    assert await names(("status", "assigned")) == {"train-2"}
    assert await names(("status", "assigned"), ("status", "pending"), ("name", "train")) == {
        "train-2",
        "train_3",
    }
    assert await names(("machine", "machine-9")) == {"Train-1"}
    assert await names(("machine", "machine-1")) == {"train-2"}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"limit": "3.0"}, "limit"),
        ({"limit": "true"}, "limit"),
        ({"limit": "9" * 30}, "limit"),
        ({"status": "queueing"}, "status"),
        ({"after": "abc"}, "after"),
        ({"after": "9" * 30}, "after"),
        ({"stauts": "failed"}, "status"),
        ({"name": "a\0"}, "name"),
    ],
)
async def test_a_query_that_cannot_be_names_its_field(
    house: House, params: dict[str, str], field: str
) -> None:
    code, data = await house.user.call("GET", params=params)
    assert code == 30005
    assert field in data["message"]


async def test_a_list_has_no_output(house: House) -> None:
    await finished(house, stdout="x" * 1000)
    _, page = await house.user.call("GET")
    assert not {"stdout", "stderr", "runs"} & set(page["tasks"][0])


# --- describe anew, delete, retry


async def test_a_waiting_task_is_described_anew(house: House) -> None:
    task = await house.user.submit("old", name="a", env={"A": "1"}, machine_id="machine-2")
    code, shown = await house.user.call("PUT", f"/{task['id']}", json={"command": "new"})
    assert code == 0
    assert (shown["command"], shown["name"], shown["env"]) == ("new", "", {})
    assert shown["created_at"] == task["created_at"]
    assert (await house.agent("1").one())["command"] == "new"  # the pin is gone as well


async def test_a_held_or_final_task_is_not_described_anew(house: House) -> None:
    await house.user.submit("old")
    task = await house.agent().one()
    before = house.rows(task)
    body = {"json": {"command": "new"}}
    assert (await house.user.call("PUT", f"/{task['id']}", **body))[0] == 30014
    assert house.rows(task) == before
    await house.agent().complete(task)
    assert (await house.user.call("PUT", f"/{task['id']}", **body))[0] == 30002
    assert (await house.user.call("PUT", "/nothing", **body))[0] == 30004


async def test_whoever_lost_a_task_cannot_come_back_with_its_old_description(house: House) -> None:
    await house.user.submit("old", disconnect_grace=0)
    agent = house.agent()
    task = await agent.one()
    await agent.start(task)
    await house.pass_time(300)
    assert (await house.user.call("PUT", f"/{task['id']}", json={"command": "new"}))[0] == 0
    assert (await agent.renew(task))[0] == 30001
    assert (await agent.complete(task))[0] == 30001
    assert (await house.agent("2").one())["command"] == "new"


async def test_another_id_in_the_body_than_in_the_address_is_refused(house: House) -> None:
    task = await house.user.submit()
    body = {"id": "other", "command": "x"}
    code, data = await house.user.call("PUT", f"/{task['id']}", json=body)
    assert code == 30005
    assert data["message"].startswith("id:")


async def test_final_and_waiting_tasks_can_be_deleted_and_held_ones_not(house: House) -> None:
    done = await finished(house, stdout="x")
    waiting = await house.user.submit(machine_id="nowhere")
    for task in (done, waiting):
        assert await house.user.call("DELETE", f"/{task['id']}") == (0, {"id": task["id"]})
        assert house.rows(task) == []
        assert (await house.user.call("GET", f"/{task['id']}"))[0] == 30004
        assert (await house.user.call("DELETE", f"/{task['id']}"))[0] == 30004
    await house.user.submit()
    held = await house.agent().one()
    assert (await house.user.call("DELETE", f"/{held['id']}"))[0] == 30014
    assert (await house.agent().complete(done))[0] == 30004


async def test_a_retry_is_a_new_task_with_a_parent(house: House) -> None:
    await house.user.submit("x", name="n", env={"A": "é"}, args=["b"], priority=3, timeout=1.5)
    agent = house.agent()
    task = await agent.one()
    assert (await house.user.call("POST", f"/{task['id']}/retry"))[0] == 30014
    await agent.complete(task, 1)
    before = house.rows(task)
    code, again = await house.user.call("POST", f"/{task['id']}/retry")
    assert (code, again["parent_id"], again["status"]) == (0, task["id"], "pending")
    for name in ("command", "name", "env", "args", "priority", "timeout"):
        assert again[name] == task[name]
    assert house.rows(task) == before


# --- output


async def test_output_is_empty_and_open_until_the_run_ended(house: House) -> None:
    task = await house.user.submit()
    path = f"/{task['id']}/logs"
    empty = {"data": "", "encoding": "utf-8", "offset": 0, "next_offset": 0, "dropped": 0}
    assert await house.user.call("GET", path) == (0, {**empty, "eof": False, "sha256": None})
    held = await house.agent().one()
    await house.agent().start(held)
    assert (await house.user.call("GET", path, params={"run": 1}))[1]["eof"] is False
    await house.agent().complete(held, 0, stdout="out", stderr="")
    assert (await house.user.call("GET", path))[1]["data"] == "out"
    assert await house.user.call("GET", path, params={"stream": "stderr"}) == (
        0,
        {**empty, "eof": True, "sha256": hashlib.sha256(b"").hexdigest()},
    )


async def test_output_is_read_piece_by_piece_between_characters(house: House) -> None:
    text = "aé" * 600_000
    task = await finished(house, stdout=text, truncated={"stdout": 12})
    path, offset, got = f"/{task['id']}/logs", 0, ""
    while True:
        _, piece = await house.user.call("GET", path, params={"offset": offset})
        assert (piece["encoding"], piece["offset"]) == ("utf-8", offset)
        assert piece["dropped"] == (12 if piece["eof"] else 0)  # nobody knows where
        got += piece["data"]
        offset = piece["next_offset"]
        if piece["eof"]:
            break
    assert got == text
    assert piece["sha256"] == hashlib.sha256(text.encode()).hexdigest()


async def test_an_offset_beyond_the_end_is_refused(house: House) -> None:
    path = f"/{(await finished(house, stdout='out'))['id']}/logs"
    _, piece = await house.user.call("GET", path, params={"offset": 3})
    assert (piece["data"], piece["eof"]) == ("", True)
    assert (await house.user.call("GET", path, params={"offset": 4}))[0] == 30005


async def test_an_offset_within_a_character_is_answered_in_base64(house: House) -> None:
    task = await finished(house, stdout="é!")
    _, piece = await house.user.call("GET", f"/{task['id']}/logs", params={"offset": 1})
    assert piece["encoding"] == "base64"
    assert base64.b64decode(piece["data"]) == b"\xa9!"


async def test_each_run_has_its_own_output(house: House) -> None:
    await house.user.submit(max_retries=1, retry_delay=1)
    older = house.agent(older=True)
    task = await older.one()
    await older.start(task)
    await older.complete(task, 1, stdout="first")
    await house.pass_time(1)
    again = await older.one()
    await older.start(again)
    await older.complete(again, 0, stdout="second")
    path = f"/{task['id']}/logs"
    for run, text in ((1, "first"), (2, "second")):
        assert (await house.user.call("GET", path, params={"run": run}))[1]["data"] == text
    assert (await house.user.call("GET", path))[1]["data"] == "second"
    code, data = await house.user.call("GET", path, params={"run": 3})
    assert code == 30005
    assert "run" in data["message"]


async def test_output_of_a_task_that_never_ran_is_empty_and_ended(house: House) -> None:
    await house.user.submit()
    task = await house.agent().one()
    await house.agent().complete(task, None, status="failed", reason="refused", error_code=30006)
    _, piece = await house.user.call("GET", f"/{task['id']}/logs")
    assert (piece["data"], piece["eof"]) == ("", True)
    shown = await house.user.get(task)
    assert (shown["runs"], shown["exit_code"], shown["error_code"]) == ([], None, 30006)
