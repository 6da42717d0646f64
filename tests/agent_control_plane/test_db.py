"""What was answered is in the file; what is not in the file was not answered."""

import asyncio
import contextlib
import resource
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from agent_control_plane import sqlite, writers
from agent_control_plane.db import Database
from agent_core.api.http import Problem
from agent_core.errors import SettingsError, StoreUnusable


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database.open(f"sqlite:///{tmp_path}/server.db")
    await opened.write(lambda c: c.execute(text("CREATE TABLE kept (id INTEGER, data BLOB)")))
    yield opened
    await opened.close()


def insert(number: int, size: int = 10) -> Any:
    def work(connection: Connection) -> int:
        connection.execute(
            text("INSERT INTO kept VALUES (:id, :data)"), {"id": number, "data": b"x" * size}
        )
        return number

    return work


def kept(database: Database) -> set[int]:
    """What another program reads in the file."""
    with contextlib.closing(sqlite3.connect(database.name)) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM kept")}


@contextlib.contextmanager
def writer_held(database: Database) -> Iterator[None]:
    """What is asked within goes into one batch."""
    held, go = threading.Event(), threading.Event()

    def wait(_connection: Connection) -> None:
        held.set()
        go.wait(30)

    waiting = asyncio.ensure_future(database.write(wait))
    try:
        yield
    finally:
        go.set()
    assert waiting is not None


async def together(database: Database, *works: Any) -> list[Any]:
    with writer_held(database):
        await asyncio.sleep(0)
        asked = [asyncio.ensure_future(database.write(work)) for work in works]
        await asyncio.sleep(0)
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_an_answer_comes_after_its_commit(database: Database) -> None:
    for number in range(20):
        assert await database.write(insert(number)) == number
        assert number in kept(database)


async def test_one_failure_in_a_batch_leaves_nothing_behind_and_harms_nobody(
    database: Database,
) -> None:
    def fails(connection: Connection) -> None:
        insert(99)(connection)
        raise ZeroDivisionError

    def wrong(connection: Connection) -> None:
        insert(98)(connection)
        connection.execute(text("SELECT * FROM nothing"))

    answers = await together(database, insert(1), fails, insert(2), wrong, insert(3))
    assert [a for a in answers if isinstance(a, int)] == [1, 2, 3]
    assert isinstance(answers[1], ZeroDivisionError)
    assert isinstance(answers[3], Exception)
    assert kept(database) == {1, 2, 3}


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses writes beyond; SQLite meets that where it writes its log: at COMMIT."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_commit_that_fails_is_no_answer_and_the_others_of_its_batch_are_kept(
    database: Database,
) -> None:
    log = Path(f"{database.name}-wal")
    with files_no_larger_than(log.stat().st_size + 300_000):
        answers = await together(
            database, insert(1), insert(2, 1_000_000), insert(3), insert(4, 1_000_000), insert(5)
        )
    taken = {answer for answer in answers if isinstance(answer, int)}
    assert taken == {1, 3, 5}
    assert all(isinstance(answers[place], Problem) for place in (1, 3))
    assert kept(database) == taken
    assert await database.write(insert(6)) == 6
    assert kept(database) == {1, 3, 5, 6}


async def test_a_full_database_refuses_what_does_not_fit_and_nothing_else(
    database: Database,
) -> None:
    pages = await database.read(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar())

    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 20}").close()

    await database.write(limit)
    answers = await together(database, insert(1), insert(2, 1_000_000), insert(3))
    assert answers[0] == 1
    assert answers[2] == 3
    assert isinstance(answers[1], Problem)
    assert (answers[1].status, answers[1].code) == (503, 30013)
    assert "no room" in answers[1].message
    assert kept(database) == {1, 3}


async def test_more_writes_than_can_wait_are_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "WRITES_WAITING", 5)
    answers = await together(database, *(insert(number) for number in range(20)))
    refused = [answer for answer in answers if isinstance(answer, Problem)]
    assert refused
    assert {each.code for each in refused} == {30013}
    assert kept(database) == {answer for answer in answers if isinstance(answer, int)}


async def test_a_lock_of_another_program_is_waited_for_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.2)
    database = Database.open(f"sqlite:///{tmp_path}/server.db")
    await database.write(lambda c: c.execute(text("CREATE TABLE kept (id INTEGER, data BLOB)")))
    with contextlib.closing(sqlite3.connect(database.name)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Problem, match="locked by another program") as caught:
            await database.write(insert(1))
        assert caught.value.status == 503
        other.execute("ROLLBACK")
    assert await database.write(insert(2)) == 2
    assert kept(database) == {2}
    await database.close()


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(Problem) as caught:
        await database.read(insert(1))
    assert caught.value.code == 30013
    assert kept(database) == set()


async def test_what_was_asked_is_written_before_it_closes(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/server.db")
    await database.write(lambda c: c.execute(text("CREATE TABLE kept (id INTEGER, data BLOB)")))
    asked = [asyncio.ensure_future(database.write(insert(number))) for number in range(300)]
    await asyncio.sleep(0)
    await database.close()
    assert set(await asyncio.gather(*asked)) == kept(database) == set(range(300))
    with pytest.raises(Problem):
        await database.write(insert(1))


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/new/server.db")
    await database.write(lambda c: c.execute(text("CREATE TABLE kept (id INTEGER, data BLOB)")))
    for path in (tmp_path / "new").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    await database.close()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///a.db?mode=ro",
        "nonsense",
        "mysql://user:secret@host/x",
    ],
)
def test_a_url_that_cannot_be_used_is_told_what_can(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Database.open(url)
    assert "sqlite:////" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_two_servers_do_not_share_a_file(tmp_path: Path) -> None:
    first = Database.open(f"sqlite:///{tmp_path}/server.db")
    with pytest.raises(StoreUnusable, match="in use by another server"):
        Database.open(f"sqlite:///{tmp_path}/server.db")
    await first.close()
    second = Database.open(f"sqlite:///{tmp_path}/server.db")
    await second.close()
