"""SQLite's own: full disks, other programs' locks, and a file for one server and its owner."""

import contextlib
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from agent_control_plane import sqlite
from agent_control_plane.db import Database
from agent_core.api.http import Problem
from agent_core.errors import StoreUnusable
from tests.agent_control_plane.jobs import MAKE, insert, kept, together
from tests.agent_control_plane.kit import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.file(tmp_path / "server.db")


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    opened = Database.open(place.url)
    await opened.write(lambda c: c.execute(MAKE))
    yield opened
    await opened.close()


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
    database: Database, place: Place
) -> None:
    log = Path(f"{database.name}-wal")
    with files_no_larger_than(log.stat().st_size + 300_000):
        answers = await together(
            database, insert(1), insert(2, 1_000_000), insert(3), insert(4, 1_000_000), insert(5)
        )
    taken = {answer for answer in answers if isinstance(answer, int)}
    assert taken == {1, 3, 5}
    assert all(isinstance(answers[number], Problem) for number in (1, 3))
    assert kept(place) == taken
    assert await database.write(insert(6)) == 6
    assert kept(place) == {1, 3, 5, 6}


async def test_a_full_database_refuses_what_does_not_fit_and_nothing_else(
    database: Database, place: Place
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
    assert kept(place) == {1, 3}


async def test_a_lock_of_another_program_is_waited_for_and_then_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.2)
    database = Database.open(place.url)
    await database.write(lambda c: c.execute(MAKE))
    with contextlib.closing(sqlite3.connect(database.name)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Problem, match="locked by another program") as caught:
            await database.write(insert(1))
        assert caught.value.status == 503
        other.execute("ROLLBACK")
    assert await database.write(insert(2)) == 2
    assert kept(place) == {2}
    await database.close()


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/new/server.db")
    await database.write(lambda c: c.execute(MAKE))
    for path in (tmp_path / "new").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    await database.close()


async def test_two_servers_do_not_share_a_file(tmp_path: Path) -> None:
    first = Database.open(f"sqlite:///{tmp_path}/server.db")
    with pytest.raises(StoreUnusable, match="in use by another server"):
        Database.open(f"sqlite:///{tmp_path}/server.db")
    await first.close()
    second = Database.open(f"sqlite:///{tmp_path}/server.db")
    await second.close()
