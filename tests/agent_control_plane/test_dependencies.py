"""What waits for what: told when it ends, in words, in pieces, and whatever happens meanwhile."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection

from agent_control_plane import dependencies, tasks
from agent_control_plane.descriptions import Description
from tests.agent_control_plane.kit import House, Place, open_house


async def ended(house: House, task: dict[str, Any], exit_code: int = 0, **more: Any) -> None:
    """An agent runs it: nothing else may be claimable."""
    agent = house.agent()
    held = await agent.one()
    assert held["id"] == task["id"]
    await agent.start(held)
    assert (await agent.complete(held, exit_code, **more))[0] == 0


async def states(house: House, *tasks: dict[str, Any]) -> list[str]:
    return [(await house.user.get(task))["status"] for task in tasks]


async def chain(house: House, length: int) -> list[dict[str, Any]]:
    made = [await house.user.submit(id="t0")]
    made += [
        await house.user.submit(id=f"t{number}", depends_on=[f"t{number - 1}"])
        for number in range(1, length)
    ]
    return made


async def many(
    house: House, number: int, on: str, *, chained: bool = False
) -> list[dict[str, Any]]:
    """So many that wait for `on`, or each for the one before it; submitted in one transaction."""
    plane, now = house.plane, house.clock.wall()

    def submit(connection: Connection) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for _ in range(number):
            before = made[-1]["id"] if chained and made else on
            body = Description(command="x", depends_on=[before])
            made.append(tasks.submit(connection, body, now, plane.terms, plane.gauge))
        return made

    return await plane.db.write(submit)


def count(house: House, status: str) -> int:
    return int(house.place.query("SELECT count(*) FROM tasks WHERE status = ?", status)[0][0])


async def test_a_task_waits_until_all_that_it_depends_on_have_completed(house: House) -> None:
    first = await house.user.submit()
    second = await house.user.submit()
    third = await house.user.submit(depends_on=[first["id"], second["id"]])
    assert third["depends_on"] == [first["id"], second["id"]]
    await ended(house, first)
    agent = house.agent()
    held = await agent.one()
    assert held["id"] == second["id"]
    await agent.start(held)
    assert await house.agent("2").claim() == []
    await agent.complete(held)
    assert (await house.agent("2").one())["id"] == third["id"]


async def test_what_completed_before_the_submit_is_met_already(house: House) -> None:
    first = await house.user.submit()
    await ended(house, first)
    second = await house.user.submit(depends_on=[first["id"]])
    assert (await house.agent().one())["id"] == second["id"]


async def test_a_failed_dependency_ends_all_that_wait_with_the_chain_of_reasons(
    house: House,
) -> None:
    a, b, c = await chain(house, 3)
    other = await house.user.submit(depends_on=[c["id"]])
    await ended(house, a, 3)
    for task, words in (
        (b, "dependency t0 did not complete: exit code 3"),
        (c, "dependency t1 did not complete: dependency t0 did not complete: exit code 3"),
    ):
        shown = await house.user.get(task)
        assert (shown["status"], shown["error_code"]) == ("failed", 30009)
        assert (shown["reason"], shown["error"]) == ("dependency", words)
        assert shown["exit_code"] is None
        assert shown["ended_at"]
    assert await states(house, other) == ["failed"]
    assert await house.agent().claim() == []


async def test_a_cancelled_dependency_ends_what_waits(house: House) -> None:
    a, b = await chain(house, 2)
    await house.user.cancel(a, "no more")
    assert (await house.user.get(b))[
        "error"
    ] == "dependency t0 did not complete: cancelled: no more"


async def test_what_depends_on_a_task_that_failed_before_ends_at_once(house: House) -> None:
    a = await house.user.submit(id="a")
    await ended(house, a, 1)
    code, b = await house.user.call("POST", json={"command": "x", "depends_on": ["a"]})
    assert (code, b["status"], b["error_code"]) == (0, "failed", 30009)
    assert b["error"] == "dependency a did not complete: exit code 1"


async def test_an_unknown_dependency_is_refused(house: House) -> None:
    a = await house.user.submit(id="a")
    body = {"command": "x", "depends_on": [a["id"], "nobody"]}
    code, data = await house.user.call("POST", json=body)
    assert code == 30005
    assert data["message"].startswith("depends_on.1: there is no task nobody")
    code, _ = await house.user.call("POST", json={"command": "x", "id": "b", "depends_on": ["b"]})
    assert code == 30005
    _, page = await house.user.call("GET")
    assert len(page["tasks"]) == 1


async def test_a_circle_is_refused_and_changes_nothing(house: House) -> None:
    a, b, c = await chain(house, 3)
    before = house.rows(a)
    for on in (["t2"], ["t1"], ["t0"]):
        code, data = await house.user.call(
            "PUT", f"/{a['id']}", json={"command": "x", "depends_on": on}
        )
        assert code == 30005
        assert data["message"].startswith("depends_on: ")
    assert house.rows(a) == before
    await ended(house, a)
    await ended(house, b)
    await ended(house, c)


async def test_a_task_described_anew_waits_for_what_it_names_now(house: House) -> None:
    a, b = await chain(house, 2)
    d = await house.user.submit(id="d")
    body = {"command": "x", "depends_on": ["d"]}
    assert (await house.user.call("PUT", "/t1", json=body))[1]["depends_on"] == ["d"]
    await ended(house, a)
    await ended(house, d)
    await ended(house, b)
    # And one that names none any more waits for nothing.
    e = await house.user.submit(id="e", machine_id="elsewhere")
    f = await house.user.submit(id="f", depends_on=["e"])
    assert (await house.user.call("PUT", "/f", json={"command": "x"}))[0] == 0
    await ended(house, f)
    assert (await house.user.call("DELETE", f"/{e['id']}"))[0] == 0


async def test_a_task_described_anew_with_a_failed_dependency_ends_with_those_that_wait(
    house: House,
) -> None:
    bad = await house.user.submit(id="bad")
    await ended(house, bad, 1)
    a, b = await chain(house, 2)
    code, shown = await house.user.call("PUT", "/t0", json={"command": "x", "depends_on": ["bad"]})
    assert (code, shown["status"], shown["error_code"]) == (0, "failed", 30009)
    assert await states(house, a, b) == ["failed", "failed"]


async def test_what_others_wait_for_cannot_be_deleted(house: House) -> None:
    a, b = await chain(house, 2)
    code, data = await house.user.call("DELETE", f"/{a['id']}")
    assert code == 30014
    assert "t1" in data["message"]
    assert (await house.user.call("DELETE", f"/{b['id']}"))[0] == 0
    assert (await house.user.call("DELETE", f"/{a['id']}"))[0] == 0


async def test_what_was_cancelled_while_it_waited_is_told_nothing_more(house: House) -> None:
    a, b = await chain(house, 2)
    await house.user.cancel(b, "enough")
    before = house.rows(b)
    await ended(house, a, 1)
    assert house.rows(b) == before


async def test_a_retry_keeps_what_its_task_depends_on(house: House) -> None:
    a, b = await chain(house, 2)
    await ended(house, a)
    await ended(house, b, 1)
    code, again = await house.user.call("POST", "/t1/retry")
    assert (code, again["depends_on"], again["status"]) == (0, ["t0"], "pending")
    await ended(house, again, 1)
    await house.user.call("DELETE", "/t0")
    code, again = await house.user.call("POST", "/t1/retry")
    assert (code, again["status"]) == (0, "pending")
    await ended(house, again)


async def test_a_retry_of_what_never_ran_for_a_failed_dependency_fails_again(house: House) -> None:
    a, b = await chain(house, 2)
    await ended(house, a, 1)
    code, again = await house.user.call("POST", f"/{b['id']}/retry")
    assert (code, again["status"], again["error_code"]) == (0, "failed", 30009)
    await house.user.call("DELETE", f"/{a['id']}")
    code, data = await house.user.call("POST", f"/{b['id']}/retry")
    assert code == 30005
    assert data["message"].startswith("depends_on.0: ")


@pytest.mark.parametrize("exit_code", [0, 1])
async def test_a_crowd_is_told_in_pieces_and_nobody_is_forgotten(
    house: House, exit_code: int
) -> None:
    a = await house.user.submit(id="a")
    size = dependencies.PIECE + 7
    crowd = await many(house, size, "a")
    last = await house.user.submit(depends_on=[crowd[-1]["id"]])
    await ended(house, a, exit_code)
    # One transaction told a piece of them, and no more.
    assert count(house, "failed") == (dependencies.PIECE + 1 if exit_code else 0)
    ready = house.place.query("SELECT count(*) FROM tasks WHERE ready_for IS NOT NULL")[0][0]
    assert ready == (0 if exit_code else dependencies.PIECE)
    await house.plane.sweep()
    if exit_code:
        assert await house.agent().claim() == []
        _, page = await house.user.call("GET", params={"status": "pending"})
        assert page["tasks"] == []
        assert (await house.user.get(last))["error"].endswith(": exit code 1")
    else:
        granted = 0
        while batch := await house.agent().claim(100):
            granted += len(batch)
        assert granted == len(crowd)
        assert (await house.user.get(last))["status"] == "pending"


async def test_a_long_chain_ends_as_a_whole_and_says_where_it_began(house: House) -> None:
    first = await house.user.submit(id="t0")
    made = await many(house, dependencies.PIECE + 10, "t0", chained=True)
    await ended(house, first, 7)
    assert count(house, "failed") == dependencies.LINKS + 1
    await house.plane.sweep()
    assert count(house, "failed") == len(made) + 1
    words = (await house.user.get(made[-1]))["error"]
    assert words.startswith(f"dependency {made[-2]['id']} did not complete: dependency ")
    assert words.endswith("dependency t0 did not complete: exit code 7")
    assert len(words) <= 1000


async def test_a_server_that_ended_between_pieces_goes_on_with_the_rest(place: Place) -> None:
    async with open_house(place) as house:
        a = await house.user.submit(id="a")
        await many(house, dependencies.PIECE + 5, "a")
        await ended(house, a, 1)
        _, page = await house.user.call("GET", params={"status": "pending"})
        assert len(page["tasks"]) == 5
    async with open_house(place) as house:
        assert await house.agent().claim() == []  # a claim sweeps too
        _, page = await house.user.call("GET", params={"status": "pending"})
        assert page["tasks"] == []


async def test_dependencies_that_end_at_the_same_moment_release_once(house: House) -> None:
    parts = [await house.user.submit() for _ in range(12)]
    last = await house.user.submit(depends_on=[part["id"] for part in parts])
    agents = [house.agent(str(number)) for number in range(12)]
    held = await asyncio.gather(*(agent.one() for agent in agents))
    await asyncio.gather(
        *(agent.complete(task) for agent, task in zip(agents, held, strict=True)),
    )
    given = await asyncio.gather(*(agent.claim() for agent in agents))
    assert [task["id"] for tasks in given for task in tasks] == [last["id"]]


async def test_whoever_is_submitted_just_as_its_dependency_ends_is_told_too(house: House) -> None:
    first = await house.user.submit()
    agent = house.agent()
    held = await agent.one()
    told = await asyncio.gather(
        *(house.user.submit(depends_on=[first["id"]]) for _ in range(6)),
        agent.complete(held, 1),
        *(house.user.submit(depends_on=[first["id"]]) for _ in range(6)),
    )
    waiting = [each for each in told if isinstance(each, dict)]
    assert len(waiting) == 12
    assert await states(house, *waiting) == ["failed"] * 12
