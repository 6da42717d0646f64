"""A database of an older version is brought up to date, keeps what it held, and works on."""

import contextlib
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from agent_control_plane import schema
from agent_control_plane.db import Database
from agent_control_plane.postgres_start import with_driver
from agent_core.errors import StoreUnusable
from tests.agent_control_plane.kit import House, Place, open_house
from tests.agent_control_plane.test_sqlite import files_no_larger_than
from tests.postgres import Cluster

OLD = (Path(__file__).parent / "tables_1.sql").read_text()
THEN = 1202.0  # seconds after the clock of a test begins: when the old server wrote last
STATES = {
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "unreachable": "pending",
    "running again": "running",
    "cancel requested": "running",
    "waiting for machine-9": "pending",
    "older agent's retry": "pending",
    "assigned": "assigned",
    "waiting": "pending",
    "waiting more": "pending",
}


def fill(place: Place) -> None:
    """As the old version left it."""
    if place.url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(place.url.removeprefix("sqlite:///"))) as file:
            file.executescript(OLD)
            file.execute("PRAGMA user_version = 1")
        return
    engine = create_engine(with_driver(make_url(place.url)))
    with engine.begin() as connection:
        schema.upgrade(connection, "0001")
        for row in re.findall(r"(?ms)^INSERT INTO .*?\);$", OLD):
            words = re.sub(r"X'([0-9A-F]*)'", r"'\\x\1'::bytea", row)
            connection.exec_driver_sql(words.replace("%", "%%"))
        connection.exec_driver_sql("SELECT setval('tasks_seq_seq', 1000)")
    engine.dispose()


@contextlib.asynccontextmanager
async def old_house(place: Place) -> AsyncIterator[House]:
    fill(place)
    async with open_house(place) as house:
        house.clock.jump_wall(THEN)
        yield house


async def by_name(house: House) -> dict[str, dict[str, Any]]:
    code, page = await house.user.call("GET", "", params={"limit": 100})
    assert code == 0, page
    return {task["name"]: task for task in page["tasks"]}


async def test_every_task_stands_where_it_stood(place: Place) -> None:
    async with old_house(place) as house:
        found = await by_name(house)
        states = {name: found[name]["status"] for name in STATES}
        done = await house.user.get(found["completed"])
        again = await house.user.get(found["running again"])
    assert states == STATES
    assert (done["exit_code"], done["stdout"], done["stderr"]) == (0, "hello ä\n", "warn\n")
    assert (done["args"], done["env"]) == (["x y", "'"], {"A": "ä\n"})
    assert (done["depends_on"], done["labels"], done["user"]) == ([], {}, "")
    assert len(done["runs"]) == 1
    assert (again["progress"], again["progress_message"]) == (7, "epoch 1")
    assert len(again["runs"]) == 2


async def test_what_was_held_is_worked_on_and_what_waited_is_given_out(place: Place) -> None:
    async with old_house(place) as house:
        found = await by_name(house)
        agent = house.agent("1")

        def mine(name: str) -> dict[str, Any]:
            [[attempt]] = house.place.query(
                "SELECT attempt_id FROM tasks WHERE id = ?", found[name]["id"]
            )
            return {**found[name], "attempt_id": attempt}

        assert (await agent.start(mine("assigned")))[0] == 0
        assert (await agent.complete(mine("assigned"), stdout="end"))[0] == 0
        assert (await agent.complete(mine("running again"), 4))[0] == 0
        assert (await agent.renew(mine("cancel requested")))[0] == 30002
        claimed = [task["name"] for task in await house.agent("2").claim()]
        assert claimed == ["waiting", "waiting more", "unreachable", "cancelled waiting"]
        assert [t["name"] for t in await house.agent("9").claim()] == ["waiting for machine-9"]
        await house.pass_time(30)
        assert [t["name"] for t in await house.agent("2").claim()] == ["older agent's retry"]
        new = await house.user.submit(name="new", depends_on=[found["waiting"]["id"]])
        assert (await house.user.get(new))["status"] == "pending"
        ended = await by_name(house)
        assert (ended["assigned"]["status"], ended["running again"]["status"]) == (
            "completed", "failed",
        )  # fmt: skip


async def test_a_key_from_before_brings_the_answer_from_before(place: Place) -> None:
    async with old_house(place) as house:
        asked = "SELECT id, parent_id FROM tasks WHERE parent_id IS NOT NULL"
        [(task, parent)] = house.place.query(asked)
        code, again = await house.user.call("POST", f"/{parent}/retry", key="key-2")
        assert (code, again["id"]) == (0, task)
        assert house.place.query(asked) == [(task, parent)]


async def test_a_database_that_is_up_to_date_is_opened_without_alembic(place: Place) -> None:
    await Database.open(place.url).close()
    code = (
        "import sys, asyncio; from agent_control_plane.db import Database\n"
        f"asyncio.run(Database.open({place.url!r}).close())\n"
        "print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


async def test_a_newer_database_is_left_as_it_is(place: Place) -> None:
    await Database.open(place.url).close()
    place.query(f"UPDATE {schema.VERSION_TABLE} SET version_num = '0999'")
    if place.url.startswith("sqlite"):
        place.query("PRAGMA user_version = 999")
    with pytest.raises(StoreUnusable, match="newer version of remotegpu"):
        Database.open(place.url)
    assert place.query(f"SELECT version_num FROM {schema.VERSION_TABLE}") == [("0999",)]


async def test_a_file_is_backed_up_before_it_is_brought_up_to_date(tmp_path: Path) -> None:
    place = Place.file(tmp_path / "server.db")
    fill(place)
    await Database.open(place.url).close()
    await Database.open(place.url).close()  # nothing left to do
    [backup] = tmp_path.glob("server.db.tables-1-*")
    assert backup.stat().st_mode & 0o077 == 0
    with (
        contextlib.closing(sqlite3.connect(backup)) as copy,
        contextlib.closing(sqlite3.connect(":memory:")) as old,
    ):
        old.executescript(OLD)
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
        for table in ("tasks", "attempts", "outputs", "agents", "idempotency"):
            rows = f"SELECT * FROM {table} ORDER BY 1, 2"
            assert copy.execute(rows).fetchall() == old.execute(rows).fetchall()
    assert place.query("PRAGMA user_version") == [(int(schema.HEAD),)]


async def test_without_room_for_the_backup_nothing_is_changed(tmp_path: Path) -> None:
    place = Place.file(tmp_path / "server.db")
    fill(place)
    with files_no_larger_than(20_000), pytest.raises(StoreUnusable, match=r"server\.db"):
        Database.open(place.url)
    assert place.query("PRAGMA user_version") == [(1,)]
    assert not list(tmp_path.glob("server.db.tables-*"))
    await Database.open(place.url).close()
    assert place.query("PRAGMA user_version") == [(int(schema.HEAD),)]


async def test_a_server_killed_in_the_middle_of_an_upgrade_has_changed_nothing(
    place: Place,
) -> None:
    fill(place)
    code = (
        "import os, sys\n"
        "from sqlalchemy import Engine, event\n"
        "from agent_control_plane.db import Database\n"
        "@event.listens_for(Engine, 'after_cursor_execute')\n"
        "def die(_c, _cursor, statement, *_):\n"
        "    if 'INDEX commands_agent' in statement: os.kill(os.getpid(), 9)\n"
        f"Database.open({place.url!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    if place.url.startswith("sqlite"):
        assert place.query("PRAGMA user_version") == [(1,)]
    else:
        assert place.query(f"SELECT version_num FROM {schema.VERSION_TABLE}") == [("0001",)]
    async with open_house(place) as house:
        found = await by_name(house)
    assert {name: found[name]["status"] for name in STATES} == STATES


async def test_an_upgrade_that_fails_leaves_the_old_tables(
    place: Place,
) -> None:
    fill(place)
    place.query("CREATE TABLE commands (id INTEGER)")  # in the way of the newest revision
    with pytest.raises(StoreUnusable, match="commands"):
        Database.open(place.url)
    place.query("DROP TABLE commands")
    async with open_house(place) as house:
        assert set(STATES) <= set(await by_name(house))


@pytest.mark.engines
def test_several_servers_that_start_at_once_upgrade_once(postgres: Cluster) -> None:
    with postgres.schema() as name:
        place = Place.schema(postgres, name)
        fill(place)
        opened: list[Database] = []
        threads = [
            threading.Thread(target=lambda: opened.append(Database.open(place.url)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == 4
        assert place.query(f"SELECT version_num FROM {schema.VERSION_TABLE}") == [(schema.HEAD,)]
        assert place.query("SELECT count(*) FROM tasks") == [(13,)]
