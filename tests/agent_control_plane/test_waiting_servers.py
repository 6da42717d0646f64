"""Whoever waits at one server is woken by what happens at another, and by that server's end."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.agent_control_plane.batch import Teller
from tests.agent_control_plane.kit import House, Place, open_house
from tests.agent_control_plane.test_command import PATIENCE, TOKENS, running
from tests.agent_control_plane.test_logs import log, piece, until_following
from tests.agent_control_plane.test_waiting import hang, until_idle
from tests.postgres import Cluster

AGENT = {
    "X-Agent-Token": TOKENS["REMOTEGPU_SERVER__AGENT_TOKEN"],
    "X-Agent-Protocol": "1",
}


@pytest.fixture
def place(postgres: Cluster) -> Iterator[Place]:
    with postgres.schema() as name:
        yield Place.schema(postgres, name)


@pytest.fixture
async def houses(place: Place) -> AsyncIterator[list[House]]:
    """Two servers in this process, each with its own connections and threads."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_house(place)) for _ in range(2)]


@pytest.mark.engines
async def test_a_task_submitted_at_one_server_wakes_a_claim_at_another(
    houses: list[House],
) -> None:
    here, there = houses
    claim = hang(here.agent())
    await until_idle(here, 1)
    task = await there.user.submit()
    assert [each["id"] for each in (await claim)["tasks"]] == [task["id"]]


@pytest.mark.engines
async def test_a_cancel_at_one_server_reaches_a_claim_at_another(houses: list[House]) -> None:
    here, there = houses
    agent = here.agent()
    await agent.register(capabilities=["commands", "wait"])
    await there.user.submit()
    task = await agent.one()
    claim = hang(agent)
    await until_idle(here, 1)
    await there.user.cancel(task, "enough")
    [command] = (await claim)["commands"]
    assert (command["action"], command["reason"]) == ("cancel", "enough")


@pytest.mark.engines
async def test_an_agent_that_asks_elsewhere_ends_what_it_asked_here(houses: list[House]) -> None:
    here, there = houses
    first = hang(here.agent())
    await until_idle(here, 1)
    there.clock.jump_wall(1)  # it asks later
    second = hang(there.agent())
    assert (await first)["tasks"] == []
    await until_idle(there, 1)
    await here.user.submit()
    assert len((await second)["tasks"]) == 1


@pytest.mark.engines
async def test_output_that_comes_to_one_server_reaches_its_reader_at_another(
    houses: list[House],
) -> None:
    here, there = houses
    agent = here.agent()
    await here.user.submit()
    task = await agent.one()
    teller = Teller(agent)
    await teller.tell(teller.event(task, "start"))
    reading = asyncio.create_task(piece(there, task, wait_sec=30))
    await until_following(there)
    assert (await log(agent, task, 0, b"hello"))[1]["watched"] is True
    assert (await reading)["data"] == "hello"
    reading = asyncio.create_task(piece(there, task, 5, wait_sec=30))
    await teller.tell(teller.event(task, "complete", exit_code=0, stdout="hello"))
    assert (await reading)["eof"] is True


async def test_a_server_told_to_stop_answers_a_claim_that_hangs_and_ends(tmp_path: Path) -> None:
    with running(tmp_path) as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            body = {"agent_id": "a", "machine_id": "m", "wait_sec": 60}
            route = "/api/v1/agent/tasks/claim"
            claim = asyncio.create_task(client.post(route, json=body, headers=AGENT))
            # The same connection pool: answered only once the claim before it has arrived.
            for _ in range(20):
                assert (await client.get("/health")).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert (await claim).json()["data"] == {"tasks": [], "commands": []}
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0


async def test_a_server_killed_under_a_claim_grants_nothing_twice(tmp_path: Path) -> None:
    """The same request_id brings what was granted, whether or not its answer arrived."""
    body = {"agent_id": "a", "machine_id": "m", "limit": 5, "wait_sec": 60, "request_id": "s:1"}
    route = "/api/v1/agent/tasks/claim"
    user = {"Authorization": f"Bearer {TOKENS['REMOTEGPU_SERVER__USER_TOKEN']}"}
    with running(tmp_path) as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            claim = asyncio.create_task(client.post(route, json=body, headers=AGENT))
            for _ in range(3):
                submitted = await client.post(
                    "/api/v1/tasks", json={"command": "true"}, headers=user
                )
                assert submitted.status_code == 201
            process.kill()
            await asyncio.gather(claim, return_exceptions=True)
    with running(tmp_path) as (_, url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            tasks: dict[str, str] = {}
            for request in ("s:1", "s:2"):
                again = {**body, "request_id": request, "wait_sec": 0}
                told = (await client.post(route, json=again, headers=AGENT)).json()["data"]
                for task in told["tasks"]:
                    assert task["id"] not in tasks
                    tasks[task["id"]] = task["attempt_id"]
            assert len(tasks) == 3
