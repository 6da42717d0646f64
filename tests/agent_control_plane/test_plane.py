"""What the server does by itself: it forgets what has been kept long enough, and goes on."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from agent_control_plane import sqlite
from tests.agent_control_plane.kit import House, open_house

DAY = 86400.0


def count(house: House, table: str) -> int:
    return int(house.place.query(f"SELECT count(*) FROM {table}")[0][0])


async def test_what_is_only_kept_for_repeats_is_forgotten_after_a_day(house: House) -> None:
    agent = house.agent()
    kept = await house.user.submit(key="k")
    for _ in range(3):
        await agent.tell(await agent.one(), "release")
    task = await agent.one()
    await agent.start(task)
    await agent.complete(task, stdout="x")
    house.clock.jump_wall(DAY - 1)
    await house.plane.forget()
    assert (count(house, "attempts"), count(house, "idempotency")) == (4, 1)
    house.clock.jump_wall(1)
    await house.plane.forget()
    assert (count(house, "attempts"), count(house, "idempotency")) == (1, 0)
    assert len((await house.user.get(kept))["runs"]) == 1
    assert (count(house, "agents"), count(house, "outputs")) == (1, 1)
    house.clock.jump_wall(30 * DAY)
    await house.plane.forget()
    assert count(house, "agents") == 0
    assert (await house.user.get(kept))["stdout"] == "x"


async def test_it_forgets_by_itself(house: House) -> None:
    await house.user.submit(key="k")
    await house.clock.until_sleeping()
    house.clock.jump_wall(DAY)
    for _ in range(200):
        await house.clock.advance(5)
        if count(house, "idempotency") == 0:
            break
        await asyncio.sleep(0.01)
    assert count(house, "idempotency") == 0


async def test_a_sweep_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.05)
    async with open_house(tmp_path / "server.db") as house:
        await house.user.submit(disconnect_grace=0)
        task = await house.agent().one()
        await house.clock.until_sleeping()
        house.clock.jump_wall(300)
        with contextlib.closing(sqlite3.connect(house.path)) as other:
            other.execute("BEGIN IMMEDIATE")
            await house.clock.advance(5)
            await house.clock.until_sleeping()  # it has met the lock, and waits for its next time
            other.execute("ROLLBACK")
        assert (await house.user.get(task))["status"] == "assigned"
        await house.clock.advance(5)
        await house.clock.until_sleeping()
        assert (await house.user.get(task))["status"] == "pending"


async def test_an_unreadable_database_is_not_healthy(house: House) -> None:
    assert (await house.client.get("/health")).json()["data"] == {"status": "ok"}
    await house.plane.db.close()
    reply = await house.client.get("/health")
    assert reply.status_code >= 500
    assert type(reply.json()["code"]) is int
