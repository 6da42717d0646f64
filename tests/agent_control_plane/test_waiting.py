"""Claims that hang: answered when there is something for them, as many as there is work."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agent_control_plane.batch import Teller
from tests.agent_control_plane.kit import AGENT_TOKEN, Agent, House, open_house


def hang(agent: Agent, **more: Any) -> "asyncio.Task[dict[str, Any]]":
    """A claim that may take its time."""

    async def claim() -> dict[str, Any]:
        body = {"machine_id": agent.machine, "limit": 10, "wait_sec": 60, **more}
        code, data = await agent.call("tasks/claim", **body)
        assert code == 0, data
        return data

    return asyncio.create_task(claim())


async def until_idle(house: House, count: int) -> None:
    """Returns when so many claims hang, and none is looking at the queue."""
    async with asyncio.timeout(20):
        while house.plane.waker.idle != count or house.plane.waker.hanging != count:
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def crowd(house: House, count: int, **more: Any) -> AsyncIterator[list[Any]]:
    hanging = []
    for number in range(count):
        hanging.append(hang(house.agent(str(number)), **more))
        await until_idle(house, number + 1)
    try:
        yield hanging
    finally:
        house.plane.stop()
        await asyncio.gather(*hanging)


async def test_a_task_submitted_answers_the_claim_that_hangs(house: House) -> None:
    claim = hang(house.agent())
    await until_idle(house, 1)
    task = await house.user.submit()
    assert [each["id"] for each in (await claim)["tasks"]] == [task["id"]]


async def test_one_task_wakes_one_claim_of_a_hundred(house: House) -> None:
    async with crowd(house, 100) as hanging:
        looks = house.plane.waker.looks
        task = await house.user.submit()
        [first], _ = await asyncio.wait(hanging, return_when=asyncio.FIRST_COMPLETED)
        assert [each["id"] for each in first.result()["tasks"]] == [task["id"]]
        assert first is hanging[0]  # who has waited longest
        await until_idle(house, 99)
        assert house.plane.waker.looks == looks + 1


async def test_as_many_claims_are_woken_as_there_is_work(house: House) -> None:
    async with crowd(house, 10, limit=1) as hanging:
        ids = {(await house.user.submit())["id"] for _ in range(4)}
        done = await asyncio.gather(*hanging[:4])
        assert {each["tasks"][0]["id"] for each in done} == ids
        await until_idle(house, 6)


async def test_a_claim_is_woken_only_for_what_it_can_take(house: House) -> None:
    labelled, bare = house.agent("1"), house.agent("2")
    await labelled.register(labels={"disk": "ssd"}, capabilities=["wait"])
    other = hang(bare)
    await until_idle(house, 1)
    claim = hang(labelled)
    await until_idle(house, 2)
    looks = house.plane.waker.looks
    task = await house.user.submit(labels={"disk": "ssd"})
    assert (await claim)["tasks"][0]["id"] == task["id"]
    pinned = await house.user.submit(machine_id="machine-2")
    assert (await other)["tasks"][0]["id"] == pinned["id"]
    assert house.plane.waker.looks == looks + 2


async def test_what_becomes_ready_by_itself_wakes_too(house: House) -> None:
    """A lease that is over, a release, a dependency that completed."""
    holder = house.agent("1")
    await house.user.submit(disconnect_grace=0)
    task = await holder.one()
    claim = hang(house.agent("2"))
    await until_idle(house, 1)
    await house.pass_time(300)
    assert (await claim)["tasks"][0]["id"] == task["id"]
    [again] = (await claim)["tasks"]
    claim = hang(house.agent("3"))
    await until_idle(house, 1)
    assert (await house.agent("2").tell(again, "release"))[0] == 0
    [third] = (await claim)["tasks"]
    await house.user.submit("after", depends_on=[third["id"]])
    claim = hang(house.agent("4"))
    await until_idle(house, 1)
    await house.agent("3").complete(third)
    assert (await claim)["tasks"][0]["command"] == "after"


async def test_a_retry_that_is_due_wakes_a_claim_at_its_time(house: House) -> None:
    await house.user.submit(max_retries=1, retry_delay=2)
    older = house.agent("old", older=True)
    task = await older.one()
    claim = hang(house.agent())
    await until_idle(house, 1)
    await older.start(task)
    await older.complete(task, 1)
    async with asyncio.timeout(20):
        while not claim.done():
            await house.clock.advance(0.5)
            await asyncio.sleep(0.01)
    assert (await claim)["tasks"][0]["id"] == task["id"]
    assert house.clock.wall() - 1_700_000_000 < 5  # not only at the next sweep


async def test_time_that_is_up_answers_with_nothing(house: House) -> None:
    claim = hang(house.agent(), wait_sec=30)
    await until_idle(house, 1)
    await house.clock.advance(29)
    assert not claim.done()
    await house.clock.advance(1)
    assert await claim == {"tasks": [], "commands": []}
    assert house.plane.waker.hanging == 0


@pytest.mark.parametrize("wait", [0, 60])
async def test_the_same_agent_asking_anew_ends_what_it_asked_before(
    house: House, wait: int
) -> None:
    first = hang(house.agent())
    await until_idle(house, 1)
    second = hang(house.agent(), wait_sec=wait)
    assert (await first)["tasks"] == []
    if wait:
        await until_idle(house, 1)
        task = await house.user.submit()
        assert (await second)["tasks"][0]["id"] == task["id"]
    else:
        assert (await second)["tasks"] == []


async def test_a_claim_with_limit_0_waits_and_is_given_no_task(house: House) -> None:
    full = hang(house.agent("1"), limit=0, free={"slots": 0})
    await until_idle(house, 1)
    free = hang(house.agent("2"))
    await until_idle(house, 2)
    await house.user.submit()
    assert len((await free)["tasks"]) == 1
    await until_idle(house, 1)
    urgent = hang(house.agent("1"), limit=0, free={"slots": 0, "urgent_at_most": 2})
    assert (await full)["tasks"] == []
    await until_idle(house, 1)
    await house.user.submit(priority=3)
    task = await house.user.submit(priority=2)
    assert [each["id"] for each in (await urgent)["tasks"]] == [task["id"]]


async def test_a_client_that_hung_up_is_granted_nothing(house: House) -> None:
    """Its slot in the line goes, and the task to the next who waits."""
    host, port = house.url.removeprefix("http://").split(":")
    body = b'{"agent_id": "gone", "machine_id": "m", "wait_sec": 60}'
    head = (
        "POST /api/v1/agent/tasks/claim HTTP/1.1\r\nHost: x\r\nX-Agent-Protocol: 1\r\n"
        f"X-Agent-Token: {AGENT_TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + body)
        await until_idle(house, 1)
    await until_idle(house, 0)
    claim = hang(house.agent())
    await until_idle(house, 1)
    task = await house.user.submit()
    assert [each["id"] for each in (await claim)["tasks"]] == [task["id"]]


async def test_a_server_that_stops_answers_whoever_hangs_first(tmp_path: Path) -> None:
    async with httpx.AsyncClient() as client:
        async with open_house(tmp_path / "server.db") as house:
            client.base_url = httpx.URL(house.url)
            agents = [replace(house.agent(str(number)), client=client) for number in range(5)]
            claims = [hang(agent) for agent in agents]
            await until_idle(house, 5)
        assert [await claim for claim in claims] == [{"tasks": [], "commands": []}] * 5


async def test_a_server_without_wait_answers_at_once(tmp_path: Path) -> None:
    async with open_house(tmp_path / "server.db", extensions=("events",)) as house:
        assert await hang(house.agent()) == {"tasks": []}
        assert (await house.agent().register())["capabilities"] == ["events"]


async def test_an_older_agent_never_hangs(house: House) -> None:
    assert await hang(house.agent(older=True)) == {"tasks": []}


async def test_many_claims_and_many_tasks_meet(house: House) -> None:
    """None is forgotten, whatever looks at the queue just when something comes."""
    ids: set[str] = set()
    got: list[str] = []

    async def agent(number: int) -> None:
        while len(got) < 150:
            data = await hang(house.agent(str(number)), limit=2)
            got.extend(task["id"] for task in data["tasks"])
            if len(got) >= 150:
                house.plane.stop()

    async def submit() -> None:
        for _ in range(50):
            ids.add((await house.user.submit())["id"])

    async with asyncio.timeout(30):
        await asyncio.gather(*(agent(number) for number in range(20)), *(submit() for _ in "abc"))
    assert sorted(got) == sorted(ids)
    assert house.plane.waker.hanging == 0


# --- commands


async def speaks_commands(house: House, name: str = "1") -> Agent:
    agent = house.agent(name)
    await agent.register(capabilities=["events", "wait", "commands"])
    return agent


async def test_a_cancel_ends_a_hanging_claim_with_a_command(house: House) -> None:
    agent = await speaks_commands(house)
    await house.user.submit()
    task = await agent.one()
    await agent.start(task)
    claim = hang(agent)
    await until_idle(house, 1)
    await house.user.cancel(task, "too slow")
    data = await claim
    [command] = data["commands"]
    assert data["tasks"] == []
    assert command == {
        "id": command["id"],
        "action": "cancel",
        "task_id": task["id"],
        "attempt_id": task["attempt_id"],
        "reason": "too slow",
    }


async def test_a_command_comes_with_every_kind_of_answer_and_again_until_it_is_answered(
    house: House,
) -> None:
    agent = await speaks_commands(house)
    await house.user.submit()
    task = await agent.one()
    await house.user.cancel(task)
    await house.user.cancel(task)  # no second one
    teller = Teller(agent)
    [command] = (await agent.call("heartbeat", machine_id=agent.machine))[1]["commands"]
    assert (await teller.call())[1]["commands"] == []  # told a moment ago
    claim = hang(agent, limit=0)
    await until_idle(house, 1)
    await house.clock.advance(10)
    assert (await claim)["commands"] == [command]
    house.clock.jump_wall(10)
    assert (await teller.call())[1]["commands"] == [command]
    answer = {"seq": 0, "kind": "command", "id": command["id"], "code": 0, "message": ""}
    assert await teller.codes(answer, answer) == [0, 0]
    house.clock.jump_wall(10)
    assert (await teller.call())[1]["commands"] == []


async def test_a_command_is_void_once_its_task_has_ended(house: House) -> None:
    agent = await speaks_commands(house)
    await house.user.submit()
    task = await agent.one()
    await house.user.cancel(task)
    await agent.complete(task, None, status="cancelled")
    assert (await agent.call("heartbeat", machine_id=agent.machine))[1]["commands"] == []
    assert house.place.query("SELECT count(*) FROM commands")[0][0] == 1
    await house.plane.forget()
    assert house.place.query("SELECT count(*) FROM commands")[0][0] == 0


async def test_another_agent_cannot_answer_a_command(house: House) -> None:
    agent = await speaks_commands(house)
    await house.user.submit()
    task = await agent.one()
    await house.user.cancel(task)
    [command] = (await agent.call("heartbeat", machine_id=agent.machine))[1]["commands"]
    thief = Teller(house.agent("2"))
    await thief.tell({"kind": "command", "id": command["id"]})
    house.clock.jump_wall(10)
    again = (await agent.call("heartbeat", machine_id=agent.machine))[1]["commands"]
    assert again == [command]


async def test_an_agent_without_commands_hears_by_its_renewal(house: House) -> None:
    agent = house.agent()
    await agent.register(capabilities=["events"])
    await house.user.submit()
    task = await agent.one()
    await house.user.cancel(task)
    assert (await agent.call("heartbeat", machine_id=agent.machine))[1]["commands"] == []
    teller = Teller(agent)
    assert await teller.codes(teller.passing(task, "renew")) == [30002]


async def test_a_heartbeat_tells_an_agent_whether_to_register_anew(tmp_path: Path) -> None:
    for words, named in ((("wait",), ["wait"]), (("wait", "logs"), ["wait", "logs"])):
        async with open_house(tmp_path / "server.db", extensions=words) as house:
            agent = await speaks_commands(house)
            _, data = await agent.call("heartbeat", machine_id=agent.machine)
            assert data == {"status": "ok", "capabilities": named, "commands": []}
            _, data = await house.agent("stranger").call("heartbeat", machine_id="m")
            assert data == {"status": "ok", "capabilities": [], "commands": []}


async def test_a_server_without_commands_gives_none(tmp_path: Path) -> None:
    async with open_house(tmp_path / "server.db", extensions=("events", "wait")) as house:
        agent = await speaks_commands(house)
        await house.user.submit()
        task = await agent.one()
        await house.user.cancel(task)
        code, data = await agent.call("heartbeat", machine_id=agent.machine)
        assert (code, data["commands"]) == (0, [])
        assert (await Teller(agent).call())[1]["commands"] == []
