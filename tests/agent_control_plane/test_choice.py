"""Who is given what: by needs, by what is free, by urgency, and never dearer for what waits."""

import asyncio
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from agent_control_plane import choice, needs
from agent_control_plane.needs import Offer
from agent_control_plane.tables import tasks
from agent_core.api.resources import Device, Free, Resources
from tests.agent_control_plane.kit import Agent, House, Place, open_house

GIB = 2**30
A100 = {"name": "NVIDIA A100-SXM4-80GB", "memory": 80 * GIB}
T4 = {"name": "Tesla T4", "memory": 16 * GIB}


def free(*gpus: dict[str, Any], slots: int = 10, **more: Any) -> dict[str, Any]:
    resources = {name: more.pop(name) for name in ("cpus", "memory") if name in more}
    return {"slots": slots, "resources": {"gpus": list(gpus), **resources}, **more}


async def names(agent: Agent, limit: int = 10, **more: Any) -> list[str]:
    return [task["name"] for task in await agent.claim(limit, **more)]


# --- needs


@pytest.mark.parametrize(
    ("labels", "resources", "executor", "text"),
    [
        ({}, {}, "", ""),
        ({}, {"gpus": 1, "gpu": "A100"}, "", '{"resources":{"gpus":1,"gpu":"a100"}}'),
        ({"b": "1", "a": "ü"}, {}, "", '{"labels":{"a":"ü","b":"1"}}'),
        ({}, {}, "bubblewrap", '{"executor":"bubblewrap"}'),
    ],
)
def test_the_same_needs_are_one_text_that_says_them(
    labels: dict[str, str], resources: dict[str, Any], executor: str, text: str
) -> None:
    asked = Resources(**resources)
    written = needs.written(labels, asked, executor)
    assert set(written) == set(text)
    assert needs.written(dict(reversed(labels.items())), asked, executor) == written
    again = needs.read(written)
    assert (dict(again.labels), again.executor) == (labels, executor)
    assert needs.written(again.labels, again.resources, again.executor) == written


def test_a_hanging_claim_is_told_apart_by_machine_needs_and_urgency() -> None:
    gpu = needs.written({}, Resources(gpus=1), "")
    two = needs.written({}, Resources(gpus=2), "")
    site = needs.written({"site": "b"}, Resources(), "")
    one_free = Free(slots=1, devices=(Device(uuid="0", name="T4"),))
    both = Free(slots=0, devices=(Device(uuid="0", name="T4"), Device(uuid="1", name="T4")))
    here = Offer(machine_id="m", limit=1, free=one_free, whole=both, labels={"site": "a"})
    full = Offer(machine_id="m", limit=0, free=Free(slots=0), whole=both, urgent_at_most=2)
    assert needs.takes(here, "", "", 9)
    assert needs.takes(here, "m", gpu, 9)
    assert not needs.takes(here, "n", "", 1)
    assert not needs.takes(here, "", two, 1)
    assert not needs.takes(here, "", site, 1)
    assert needs.takes(full, "", two, 2)
    assert not needs.takes(full, "", "", 3)
    assert needs.takes(replace(full, limit=2), "", two, 2), "also where it has others ready"
    assert not needs.takes(replace(full, limit=2), "", two, 3)
    assert not needs.takes(Offer(machine_id="m", limit=1), "", gpu, 1)
    no_slot = Offer(machine_id="m", limit=3, free=Free(slots=0, devices=both.devices), whole=both)
    assert needs.takes(no_slot, "", "", 9)  # to have it ready
    assert not needs.takes(no_slot, "", gpu, 1)


async def test_what_is_asked_for_comes_back_in_one_form(house: House) -> None:
    task = await house.user.submit(
        user="ada",
        labels={"site": "b"},
        resources={"gpu": "A100", "gpu_memory": "20GiB", "cpus": 2, "memory": "1KB"},
        executor="bubblewrap",
    )
    wanted = {"gpus": 1, "gpu": "A100", "gpu_memory": 20 * GIB, "cpus": 2.0, "memory": 1000}
    assert task["resources"] == wanted
    assert (task["user"], task["labels"], task["executor"]) == ("ada", {"site": "b"}, "bubblewrap")
    agent = house.agent()
    await agent.register(labels={"site": "b", "x": "y"}, executors=["child", "bubblewrap"])
    (held,) = await agent.claim(free=free(A100, cpus=4, memory=GIB))
    for name in ("user", "labels", "resources", "executor", "depends_on"):
        assert held[name] == task[name]
    code, again = await house.user.call("PUT", f"/{task['id']}", json={"command": "x"})
    assert code == 30014, again


async def test_the_list_is_filtered_by_user(house: House) -> None:
    await house.user.submit(user="ada", name="a")
    await house.user.submit(user="bob", name="b")
    await house.user.submit(name="c")
    _, page = await house.user.call("GET", params={"user": "bob"})
    assert [task["name"] for task in page["tasks"]] == ["b"]


async def test_needs_that_no_index_could_hold_are_refused(house: House) -> None:
    labels = {f"label-{number}": "ü" * 200 for number in range(8)}
    code, data = await house.user.call("POST", json={"command": "x", "labels": labels})
    assert code == 30005
    assert "1500 bytes" in data["message"]


async def test_more_different_needs_than_a_claim_can_look_at_are_put_off(house: House) -> None:
    like = await house.user.submit(labels={"job": "0"})

    def many(connection: Any) -> None:
        row = dict(
            connection.execute(tasks.select().where(tasks.c.id == like["id"])).mappings().one()
        )
        del row["seq"]
        rows = [{**row, "id": f"t{n}", "needs": f"n{n}"} for n in range(choice.MOST_LINES - 1)]
        connection.execute(insert(tasks), rows)

    await house.plane.db.write(many)
    code, data = await house.user.call("POST", json={"command": "x", "labels": {"job": "1"}})
    assert code == 30013
    assert "different combinations" in data["message"]
    await house.user.submit(labels={"job": "0"})  # needs that wait already
    await house.user.submit()
    await house.user.submit(machine_id="m", labels={"job": "1"})  # another machine's lines
    await house.user.cancel(like)
    await house.user.submit(labels={"job": "0"})


# --- what fits


async def test_an_older_agent_and_one_that_tells_nothing_get_what_asks_for_nothing(
    house: House,
) -> None:
    await house.user.submit(name="gpu", resources={"gpus": 1})
    await house.user.submit(name="cpu", resources={"cpus": 1})
    await house.user.submit(name="label", labels={"site": "b"})
    await house.user.submit(name="executor", executor="x")
    await house.user.submit(name="plain")
    await house.user.submit(name="plain")
    (older,) = await house.agent("1", older=True).claim(1)
    assert older["name"] == "plain"
    assert not {"labels", "resources", "executor", "user", "depends_on"} & set(older)
    assert await names(house.agent("2")) == ["plain"]
    assert await names(house.agent("3"), free=free()) == []


async def test_labels_must_all_be_there_and_equal(house: House) -> None:
    await house.user.submit(name="both", labels={"site": "b", "disk": "ssd"})
    wrong, part, right = (house.agent(name) for name in "123")
    await wrong.register(labels={"site": "a", "disk": "ssd"})
    await part.register(labels={"site": "b"})
    await right.register(labels={"site": "b", "disk": "ssd", "more": "x"})
    assert await names(wrong) == []
    assert await names(part) == []
    assert await names(right) == ["both"]


async def test_a_full_agent_that_has_some_ready_is_given_urgent_work_for_its_devices_too(
    house: House,
) -> None:
    for number in (1, 2):
        await house.user.submit(name=f"urgent {number}", priority=number, resources={"gpus": 1})
        await house.user.submit(name=f"plain {number}", priority=number)
    await house.user.submit(name="gpu", priority=4, resources={"gpus": 1})
    agent = house.agent()
    await agent.register(gpus=[{"uuid": "GPU-0", **T4}])
    told = free(slots=0, urgent_at_most=3)
    assert await names(agent, 2, free=told) == ["urgent 1", "plain 1"]
    assert await names(agent, 2, free=told) == ["urgent 2", "plain 2"]
    assert await names(agent, 2, free=told) == []


async def test_only_what_together_fits_is_given_the_most_urgent_first(house: House) -> None:
    await house.user.submit(name="two", priority=4, resources={"gpus": 2})
    await house.user.submit(name="one", priority=5, resources={"gpus": 1})
    await house.user.submit(name="a100", priority=2, resources={"gpus": 1, "gpu": "a100"})
    await house.user.submit(name="plain", priority=9)
    await house.user.submit(name="ram", priority=1, resources={"memory": "4GiB"})
    await house.user.submit(name="ram", priority=6, resources={"memory": "4GiB"})
    agent = house.agent()
    given = await names(agent, free=free(A100, T4, memory=6 * GIB))
    # Two devices, of which a100 took one: "two" does not fit any more, "one" does.
    assert given == ["ram", "a100", "one", "plain"]
    assert await names(agent, free=free(memory=2 * GIB)) == []
    assert await names(agent, free=free(A100, T4, memory=4 * GIB)) == ["two", "ram"]


async def test_what_asks_for_resources_is_not_granted_ahead_of_a_slot(house: House) -> None:
    for name in ("first", "second", "third"):
        await house.user.submit(name=name, resources={"gpus": 1})
    for _ in range(3):
        await house.user.submit(name="plain")
    given = await names(house.agent(), 4, free=free(T4, T4, T4, slots=2))
    assert given == ["first", "second", "plain", "plain"]


async def test_tasks_of_one_line_are_given_in_their_order_and_limit_holds(house: House) -> None:
    for number in range(6):
        await house.user.submit(name=f"p{number % 3}-{number}", priority=1 + number % 3)
        await house.user.submit(name=f"m{number}", priority=2, machine_id="machine-1")
    given = await names(house.agent(), 5)
    assert given == ["p0-0", "p0-3", "m0", "p1-1", "m1"]


async def test_a_full_agent_is_given_one_urgent_task_that_its_machine_could_run(
    house: House,
) -> None:
    await house.user.submit(name="huge", priority=1, resources={"gpus": 3})
    await house.user.submit(name="soon", priority=2, resources={"gpus": 2})
    await house.user.submit(name="soon", priority=2)
    await house.user.submit(name="later", priority=3)
    agent = house.agent()
    await agent.register(gpus=[T4, T4])
    full = {"slots": 0, "resources": {}}
    assert await names(agent, 0) == []
    assert await names(agent, 0, free=full) == []
    assert await names(agent, 0, free={**full, "urgent_at_most": 1}) == []
    assert await names(agent, 0, free={**full, "urgent_at_most": 2}) == ["soon"]
    assert await names(agent, 0, free={**full, "urgent_at_most": 2}) == ["soon"]
    assert await names(agent, 0, free={**full, "urgent_at_most": 2}) == []


async def test_many_agents_that_claim_at_once_share_the_lines_without_a_task_twice(
    house: House,
) -> None:
    for number in range(60):
        more = {"resources": {"gpus": 1}} if number % 3 else {}
        await house.user.submit(priority=1 + number % 4, **more)
    agents = [house.agent(str(number)) for number in range(8)]

    async def all_of(agent: Agent) -> list[str]:
        got: list[str] = []
        for _ in range(8):
            got += [task["id"] for task in await agent.claim(2, free=free(T4, T4, slots=2))]
        return got

    taken = await asyncio.gather(*map(all_of, agents))
    ids = [task_id for some in taken for task_id in some]
    assert len(ids) == len(set(ids)) == 60


async def test_the_same_claim_again_brings_the_same_tasks_also_after_a_restart(
    place: Place,
) -> None:
    async with open_house(place) as house:
        for _ in range(3):
            await house.user.submit(resources={"gpus": 1})
        first = await house.agent().claim(2, "s:1", free=free(T4, T4))
    async with open_house(place) as house:
        again = await house.agent().claim(2, "s:1", free=free(T4))
        assert [(t["id"], t["attempt_id"]) for t in again] == [
            (t["id"], t["attempt_id"]) for t in first
        ]
        assert len(await house.agent().claim(2, "s:2", free=free(T4))) == 1


# --- what a claim costs


async def test_a_claim_costs_the_same_however_many_wait_for_what_is_not_here(
    tmp_path: Path,
) -> None:
    few = await _steps_of_a_claim(tmp_path / "few.db", 10)
    many = await _steps_of_a_claim(tmp_path / "many.db", 5000)
    assert many <= 1.5 * few


async def _steps_of_a_claim(path: Path, waiting: int) -> int:
    """Hundreds of steps of SQLite's machine: they do not swing with the load of ours."""
    async with open_house(path) as house:
        agent = house.agent()
        for _ in range(20):
            await house.user.submit(name="any")
            await house.user.submit(name="mine", machine_id=agent.machine)
        far = await house.user.submit(priority=1, resources={"gpus": 8, "gpu": "h100"})
        await house.plane.db.write(lambda connection: _many(connection, far["id"], waiting))
        assert len(await agent.claim(1, free=free(T4))) == 1
        seen = await house.plane.db.write(_count_steps)
        assert len(await agent.claim(10, free=free(T4))) == 10
        return seen[0]


def _many(connection: Any, like: str, number: int) -> None:
    """So many more rows like one that waits."""
    row = dict(connection.execute(tasks.select().where(tasks.c.id == like)).mappings().one())
    del row["seq"]
    connection.execute(insert(tasks), [{**row, "id": f"far-{n}"} for n in range(number)])
    connection.exec_driver_sql("ANALYZE")


def _count_steps(connection: Any) -> list[int]:
    seen = [0]

    def step() -> int:
        seen[0] += 1
        return 0

    driver: sqlite3.Connection = connection.connection.dbapi_connection
    driver.set_progress_handler(step, 100)
    return seen
