"""Several server processes on one PostgreSQL database are one control plane."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agent_control_plane.kit import House, Place, answer, open_house
from tests.agent_control_plane.test_command import TOKENS, running
from tests.postgres import Cluster

pytestmark = pytest.mark.engines
TASKS = 240
AGENTS = 8


@pytest.fixture
def place(postgres: Cluster) -> Iterator[Place]:
    with postgres.schema() as name:
        yield Place.schema(postgres, name)


@pytest.fixture
async def houses(place: Place) -> AsyncIterator[list[House]]:
    """Three servers in this process, each with its own connections and threads."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_house(place)) for _ in range(3)]


async def test_no_task_goes_to_two_however_many_servers_are_asked_at_once(
    houses: list[House],
) -> None:
    for _ in range(60):
        await houses[0].user.submit()
    agents = [houses[number % 3].agent(str(number)) for number in range(12)]
    brought = await asyncio.gather(*(agent.claim(3) for agent in agents for _ in range(3)))
    ids = [task["id"] for tasks in brought for task in tasks]
    assert len(ids) == len(set(ids)) == 60


async def test_the_same_claim_at_every_server_at_once_is_one_claim(houses: list[House]) -> None:
    for _ in range(20):
        await houses[0].user.submit()
    for number in range(3):
        request = f"s:{number}"
        brought = await asyncio.gather(
            *(house.agent("1").claim(2, request) for house in houses for _ in range(2))
        )
        attempts = [sorted(task["attempt_id"] for task in tasks) for tasks in brought]
        assert attempts == [attempts[0]] * 6
        assert len(attempts[0]) == 2


async def test_the_same_key_at_every_server_at_once_is_one_task(houses: list[House]) -> None:
    brought = await asyncio.gather(
        *(house.user.submit(key="k") for house in houses for _ in range(3))
    )
    assert len({task["id"] for task in brought}) == 1
    [[count]] = houses[0].place.query("SELECT count(*) FROM tasks")
    assert count == 1


async def test_an_agent_that_registers_everywhere_at_once_is_one_agent(
    houses: list[House],
) -> None:
    await asyncio.gather(*(house.agent("1").register(max_workers=2) for house in houses * 3))
    assert houses[0].place.query("SELECT id, max_workers FROM agents") == [("agent-1", 2)]


async def test_a_task_that_is_completed_at_two_servers_at_once_is_completed_once(
    houses: list[House],
) -> None:
    for _ in range(10):
        task = await houses[0].user.submit()
        one = await houses[0].agent().one()
        await houses[0].agent().start(one)
        answers = await asyncio.gather(
            *(
                house.agent().complete(one, number, stdout=f"{number}")
                for number, house in enumerate(houses)
            )
        )
        assert [code for code, _ in answers] == [0, 0, 0]  # a repeat is no error
        told = await houses[0].user.get(task)
        assert told["stdout"] == str(told["exit_code"])
        assert len(told["runs"]) == 1


class Anywhere:
    """Asks any server that answers, the same request until one does."""

    def __init__(self, clients: list[httpx.AsyncClient], first: int) -> None:
        self._turn = itertools.cycle(clients[first:] + clients[:first])
        self._client = next(self._turn)

    async def call(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        headers = {
            "X-Agent-Token": TOKENS["REMOTEGPU_SERVER__AGENT_TOKEN"],
            "X-Agent-Protocol": "1",
        }
        while True:
            try:
                reply = await self._client.post(f"/api/v1/agent/{path}", json=body, headers=headers)
            except httpx.HTTPError:
                self._client = next(self._turn)
                await asyncio.sleep(0.01)
                continue
            return answer(reply)


async def test_one_of_three_is_killed_and_every_task_is_run_once(
    place: Place, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(running(tmp_path, REMOTEGPU_SERVER__DATABASE=place.url))
            for _ in range(3)
        ]
        async with contextlib.AsyncExitStack() as clients_stack:
            clients = [
                await clients_stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30))
                for _, url in servers
            ]
            await _submit_all(clients[1])
            granted: dict[str, set[str]] = {}
            done: set[str] = set()

            async def work(number: int) -> None:
                ask = Anywhere(clients, number % 3)
                who = {"agent_id": f"a{number}"}
                for turn in itertools.count():
                    code, data = await ask.call(
                        "tasks/claim", machine_id=f"m{number}", limit=3,
                        request_id=f"{number}:{turn}", **who,
                    )  # fmt: skip
                    assert code == 0, data
                    if not data["tasks"]:
                        return
                    for task in data["tasks"]:
                        granted.setdefault(task["id"], set()).add(task["attempt_id"])
                        which = {**who, "attempt_id": task["attempt_id"]}
                        assert (await ask.call(f"tasks/{task['id']}/start", **which))[0] == 0
                        told = await ask.call(f"tasks/{task['id']}/complete", exit_code=0, **which)
                        assert told[0] == 0, told
                        done.add(task["id"])
                        if len(done) == TASKS // 3:
                            servers[0][0].kill()

            await asyncio.gather(*(work(number) for number in range(AGENTS)))
            assert servers[0][0].wait(30) == -9
        assert len(done) == len(granted) == TASKS
        assert {len(attempts) for attempts in granted.values()} == {1}
        ended = place.query("SELECT status, count(*) FROM tasks GROUP BY status")
        assert ended == [("completed", TASKS)]
        began = place.query("SELECT count(*), count(DISTINCT task_id) FROM attempts")
        assert began == [(TASKS, TASKS)]


async def _submit_all(client: httpx.AsyncClient) -> None:
    headers = {"Authorization": f"Bearer {TOKENS['REMOTEGPU_SERVER__USER_TOKEN']}"}
    for _ in range(TASKS):
        reply = await client.post("/api/v1/tasks", json={"command": "x"}, headers=headers)
        assert reply.status_code == 201
