"""PostgreSQL's own: others in the way, outages, several servers that hear each other, refusals."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text

from agent_control_plane import postgres as postgres_module
from agent_control_plane.db import Database, notify
from agent_core.api.http import Problem
from agent_core.errors import RemoteGPUError, SettingsError, StoreUnusable
from tests.agent_control_plane.jobs import MAKE, insert, kept
from tests.agent_control_plane.kit import Place, open_house
from tests.agent_control_plane.test_db import Ear, says
from tests.postgres import Cluster, cluster

pytestmark = pytest.mark.engines
TERMINATE = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE application_name = 'remotegpu'"
)


@pytest.fixture
def place(postgres: Cluster) -> Iterator[Place]:
    with postgres.schema() as name:
        yield Place.schema(postgres, name)


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    opened = Database.open(place.url)
    await opened.write(lambda c: c.execute(MAKE))
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def mortal() -> Iterator[Cluster]:
    """A server that a test may stop, and starts again."""
    with cluster() as made:
        yield made


# --- others in the way


class Meeting:
    """Works that meet at their first try, whatever comes of it."""

    def __init__(self, number: int) -> None:
        self._barrier = threading.Barrier(number)
        self.tries = 0

    def here(self) -> None:
        self.tries += 1
        if self.tries <= self._barrier.parties:
            self._barrier.wait(30)


async def test_two_that_look_and_insert_the_same_at_once_are_one_insert(
    database: Database, place: Place
) -> None:
    meeting = Meeting(2)

    def once(connection: Connection) -> str:
        if connection.execute(text("SELECT 1 FROM kept WHERE id = 1")).first():
            return "was there"
        meeting.here()
        insert(1)(connection)
        return "made"

    assert sorted(await asyncio.gather(database.write(once), database.write(once))) == [
        "made",
        "was there",
    ]
    assert kept(place) == {1}


async def test_a_deadlock_is_resolved_and_both_are_done(database: Database, place: Place) -> None:
    await database.write(insert(1))
    await database.write(insert(2))
    meeting = Meeting(2)

    def change(first: int, second: int) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            for number, row in enumerate((first, second)):
                connection.execute(
                    text("UPDATE kept SET data = data || :more WHERE id = :id"),
                    {"id": row, "more": str(first)},
                )
                if number == 0:
                    meeting.here()

        return work

    await asyncio.gather(database.write(change(1, 2)), database.write(change(2, 1)))
    assert meeting.tries >= 3  # whoever was chosen as the victim began anew
    changed = [sorted(data.lstrip("x")) for [data] in place.query("SELECT data FROM kept")]
    assert changed == [["1", "2"], ["1", "2"]]


async def test_a_lock_that_somebody_keeps_is_told_and_nothing_is_done(
    database: Database, place: Place
) -> None:
    await database.write(insert(1))
    with psycopg.connect(place.url) as other:
        other.execute("SELECT * FROM kept FOR UPDATE")

        def change(connection: Connection) -> None:
            connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
            connection.execute(text("UPDATE kept SET data = ''"))

        with pytest.raises(Problem, match="locked by another program") as caught:
            await database.write(change)
        assert (caught.value.status, caught.value.code) == (503, 30013)
    assert place.query("SELECT data FROM kept") == [("x" * 10,)]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("53100", "no room"),
        ("53200", "lacks what it needs"),
        ("57014", "too long"),
        ("40001", "too many others"),
    ],
)
async def test_what_passes_is_told_in_words(database: Database, state: str, words: str) -> None:
    raises = text(f"DO $$ BEGIN RAISE 'x' USING ERRCODE = '{state}'; END $$")
    with pytest.raises(Problem, match=words) as caught:
        await database.write(lambda connection: connection.execute(raises))
    assert (caught.value.status, caught.value.code) == (503, 30013)


# --- outages


async def test_connections_that_died_while_they_were_idle_are_not_noticed(
    database: Database, place: Place
) -> None:
    def read(connection: Connection) -> Any:
        return connection.execute(text("SELECT count(*) FROM kept")).scalar()

    for number in range(3):
        assert await database.write(insert(number)) == number
        assert await database.read(read) == number + 1
        assert place.query(TERMINATE)[0][0] >= 2
    assert kept(place) == {0, 1, 2}


async def test_a_connection_that_breaks_at_its_commit_is_told_as_unknown(
    database: Database, place: Place
) -> None:
    place.query(
        "CREATE FUNCTION dies() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.id < 100 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
        "RETURN NULL; END $$"
    )
    place.query(
        "CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON kept DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION dies()"
    )
    tries: list[int] = []

    def work(connection: Connection) -> None:
        tries.append(1)
        insert(1)(connection)

    with pytest.raises(Problem, match="broke before it said whether") as caught:
        await database.write(work)
    assert (caught.value.status, caught.value.code) == (503, 30013)
    assert tries == [1]  # again, it might have been done twice
    assert await database.write(insert(100)) == 100


async def test_an_outage_is_told_and_over_by_itself(
    mortal: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(postgres_module, "DOWN_FOR", 0.0)
    with mortal.schema() as name:
        async with open_house(Place.schema(mortal, name)) as house:
            before = await house.user.submit()
            mortal.stop()
            try:
                for _ in range(3):
                    code, told = await house.user.call("POST", json={"command": "x"})
                    assert (code, "cannot be reached" in told["message"]) == (30013, True)
                    code, told = await house.user.call("GET", f"/{before['id']}")
                    assert (code, "cannot be reached" in told["message"]) == (30013, True)
                assert (await house.client.get("/health")).status_code == 503
            finally:
                mortal.start()
            after = await house.user.submit()
            assert {t["id"] for t in await house.agent().claim()} == {before["id"], after["id"]}
    said = capfd.readouterr().out
    assert said.count("nothing can be written") == 1
    assert said.count("can be written again") == 1


async def test_a_crash_of_the_database_loses_nothing_that_was_answered(mortal: Cluster) -> None:
    with mortal.schema() as name:
        place = Place.schema(mortal, name)
        database = Database.open(place.url)
        await database.write(lambda c: c.execute(MAKE))
        answered: list[int] = []

        async def write(number: int) -> None:
            answered.append(await database.write(insert(number)))

        async with asyncio.TaskGroup() as group:
            writing = [
                group.create_task(_swallow(write(number)), name=f"w{number}")
                for number in range(200)
            ]
            while len(answered) < 20:
                await asyncio.sleep(0)
            await asyncio.to_thread(mortal.stop, 3)  # SIGQUIT
            mortal.start()
        assert len(writing) == 200
        assert set(answered) <= kept(place)
        await database.close()


async def _swallow(work: Any) -> None:
    try:
        await work
    except Problem:
        return


# --- several servers


async def test_what_one_server_commits_every_other_hears(place: Place) -> None:
    servers = [Database.open(place.url) for _ in range(3)]
    ears = [Ear(server) for server in servers]
    for ear in ears:
        await ear.until(None)  # they listen
    await servers[0].write(says("a", "b"))
    await servers[1].write(says("c"))
    for ear in ears:
        await ear.until("c")
        await ear.until("b")
        assert sorted(message for message in ear.heard if message) == ["a", "b", "c"]
    for server in servers:
        await server.close()


async def test_servers_of_other_schemas_hear_nothing_of_it(postgres: Cluster) -> None:
    with postgres.schema() as one, postgres.schema() as two:
        first, second = (Database.open(postgres.url(name)) for name in (one, two))
        ear, other = Ear(first), Ear(second)
        await ear.until(None)
        await other.until(None)
        await second.write(says("two"))
        await first.write(says("one"))
        await other.until("two")
        await ear.until("one")
        assert ear.heard == [None, "one"]
        assert other.heard == [None, "two"]
        await first.close()
        await second.close()


async def test_after_a_lost_connection_it_is_told_that_messages_may_be_missing(
    place: Place,
) -> None:
    speaks, listens = Database.open(place.url), Database.open(place.url)
    ear = Ear(listens)
    await ear.until(None)
    ear.heard.clear()
    place.query(TERMINATE)
    await speaks.write(says("perhaps missed"))
    await ear.until(None)
    await speaks.write(says("heard"))
    await ear.until("heard")
    await speaks.close()
    await listens.close()


async def test_work_that_ran_again_has_said_its_words_once(database: Database) -> None:
    ear = Ear(database)
    meeting = Meeting(2)

    def once(connection: Connection) -> None:
        if connection.execute(text("SELECT 1 FROM kept WHERE id = 1")).first():
            notify(connection, "second")
            return
        notify(connection, f"try {meeting.tries}")
        meeting.here()
        insert(1)(connection)

    await asyncio.gather(database.write(once), database.write(once))
    await database.write(says("end"))
    await ear.until("end")
    assert len([message for message in ear.heard if message and "try" in message]) == 1


# --- refusals at the start


def refused(url: str, kind: type[RemoteGPUError] = SettingsError) -> str:
    with pytest.raises(kind) as caught:
        Database.open(url)
    words = str(caught.value)
    assert "\n" not in words
    assert "secret" not in words
    return words


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    words = refused(f"postgresql://me:secret@/x?host={tmp_path}")
    assert "cannot be reached" in words
    assert "start it, or correct" in words


def test_a_database_that_is_not_there(postgres: Cluster) -> None:
    assert '"nothing" does not exist' in refused(postgres.url(database="nothing"))


def test_a_password_that_is_wrong(mortal: Cluster) -> None:
    mortal.query("CREATE ROLE locked LOGIN PASSWORD 'right'")
    rules = mortal.directory / "data/pg_hba.conf"
    before = rules.read_text()
    rules.write_text("local all locked scram-sha-256\n" + before)
    mortal.query("SELECT pg_reload_conf()")
    try:
        url = mortal.url().replace("postgres@", "locked:secret@")
        assert "password authentication failed" in refused(url)
    finally:
        rules.write_text(before)
        mortal.query("SELECT pg_reload_conf()")


def test_an_encoding_that_cannot_hold_every_text(postgres: Cluster) -> None:
    postgres.query(
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    assert "encoded in LATIN1" in refused(postgres.url(database="latin"))


def test_a_schema_that_is_not_there(postgres: Cluster) -> None:
    assert "has no schema" in refused(postgres.url("missing"))


def test_tables_of_another_program(place: Place) -> None:
    place.query("CREATE TABLE tasks (id INTEGER)")
    assert "tables of another program (tasks)" in refused(place.url, StoreUnusable)
    place.query("SELECT id FROM tasks")


def test_a_user_who_may_not_make_tables(postgres: Cluster, place: Place) -> None:
    postgres.query("CREATE ROLE reader LOGIN")
    schema = place.query("SELECT current_schema()")[0][0]
    postgres.query(f"GRANT USAGE ON SCHEMA {schema} TO reader")
    assert "GRANT CREATE" in refused(place.url.replace("postgres@", "reader@"))


def test_a_standby(place: Place) -> None:
    words = refused(place.url + quote_option("default_transaction_read_only=on"))
    assert "name the primary" in words


def quote_option(setting: str) -> str:
    return f"%20-c%20{setting}"


def test_a_driver_that_is_not_installed() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from agent_control_plane.db import Database\n"
        "try: Database.open('postgresql://me:secret@host/x')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("SettingsError")
    assert "pip install 'remotegpu[postgresql]'" in done.stdout


def test_no_password_is_shown_anywhere(mortal: Cluster) -> None:
    url = mortal.url().replace("postgres@", "postgres:secret@") + "&password=secret"
    with mortal.schema() as name:
        opened = Database.open(url.replace("public", name))
        assert "secret" not in opened.name
        asyncio.run(opened.close())
