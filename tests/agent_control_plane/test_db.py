"""What was answered is in the database; what is not in the database was not answered."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, text

from agent_control_plane import writers
from agent_control_plane.db import MOST_SAID, Database, notify
from agent_core.api.http import Problem
from agent_core.errors import SettingsError
from tests.agent_control_plane.jobs import MAKE, insert, kept, together
from tests.agent_control_plane.kit import Place


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    """On SQLite and on PostgreSQL."""
    opened = Database.open(place.url)
    await opened.write(lambda c: c.execute(MAKE))
    yield opened
    await opened.close()


async def test_an_answer_comes_after_its_commit(database: Database, place: Place) -> None:
    for number in range(20):
        assert await database.write(insert(number)) == number
        assert number in kept(place)


async def test_one_failure_among_many_leaves_nothing_behind_and_harms_nobody(
    database: Database, place: Place
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
    assert kept(place) == {1, 2, 3}


async def test_a_key_that_is_there_for_good_is_an_error_and_not_tried_for_ever(
    database: Database, place: Place
) -> None:
    await database.write(insert(1))
    answers = await together(database, insert(2), insert(1), insert(3))
    assert [type(answer).__name__ for answer in answers] == ["int", "IntegrityError", "int"]
    assert kept(place) == {1, 2, 3}


async def test_more_writes_than_can_wait_are_refused(
    database: Database, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "WRITES_WAITING", 5)
    answers = await together(database, *(insert(number) for number in range(20)))
    refused = [answer for answer in answers if isinstance(answer, Problem)]
    assert refused
    assert {each.code for each in refused} == {30013}
    assert kept(place) == {answer for answer in answers if isinstance(answer, int)}


async def test_a_reader_cannot_write(database: Database, place: Place) -> None:
    with pytest.raises(Problem, match="read-only") as caught:
        await database.read(insert(1))
    assert caught.value.code == 30013
    assert kept(place) == set()


async def test_a_reader_sees_one_moment(database: Database) -> None:
    """However many statements it makes while others write."""
    loop = asyncio.get_running_loop()

    def count(connection: Connection) -> int:
        return int(connection.execute(text("SELECT count(*) FROM kept")).scalar() or 0)

    def twice(connection: Connection) -> tuple[int, int]:
        before = count(connection)
        asyncio.run_coroutine_threadsafe(database.write(insert(1)), loop).result(30)
        return before, count(connection)

    assert await database.read(twice) == (0, 0)
    assert await database.read(count) == 1


async def test_what_was_asked_is_written_before_it_closes(place: Place) -> None:
    database = Database.open(place.url)
    await database.write(lambda c: c.execute(MAKE))
    asked = [asyncio.ensure_future(database.write(insert(number))) for number in range(300)]
    await asyncio.sleep(0)
    await database.close()
    assert set(await asyncio.gather(*asked)) == kept(place) == set(range(300))
    with pytest.raises(Problem):
        await database.write(insert(1))


# --- messages


class Ear:
    """What a listener heard; None came where some may have been missed."""

    def __init__(self, database: Database) -> None:
        self.heard: list[str | None] = []
        self._more = asyncio.Event()
        database.listen(self._hear)

    def _hear(self, messages: Sequence[str] | None) -> None:
        self.heard += [None] if messages is None else messages
        self._more.set()

    async def until(self, message: str | None) -> None:
        async with asyncio.timeout(30):
            while message not in self.heard:
                self._more.clear()
                await self._more.wait()


def says(*messages: str, fails: bool = False) -> Any:
    def work(connection: Connection) -> None:
        for message in messages:
            notify(connection, message)
        if fails:
            raise ZeroDivisionError

    return work


async def test_what_committed_work_said_is_heard_once_and_in_order(database: Database) -> None:
    ear = Ear(database)
    await database.write(says("a", "b", "a"))
    await database.write(says("c"))
    await ear.until("c")
    assert [message for message in ear.heard if message] == ["a", "b", "c"]


async def test_what_failing_work_said_is_never_heard(database: Database) -> None:
    ear = Ear(database)
    await together(database, says("a"), says("wrong", fails=True), says("b"))
    await database.write(says("last"))
    await ear.until("last")
    assert sorted(message for message in ear.heard if message) == ["a", "b", "last"]


async def test_a_message_is_heard_after_what_it_tells_of_can_be_read(
    database: Database, place: Place
) -> None:
    there: list[bool] = []
    done = asyncio.Event()

    def hear(messages: Sequence[str] | None) -> None:
        for message in messages or ():
            there.append(int(message) in kept(place))
            if message == "9":
                done.set()

    def work(number: int) -> Any:
        def insert_and_say(connection: Connection) -> None:
            insert(number)(connection)
            notify(connection, str(number))

        return insert_and_say

    database.listen(hear)
    for number in range(10):
        await database.write(work(number))
    await asyncio.wait_for(done.wait(), 30)
    assert there == [True] * 10


async def test_a_message_that_is_too_long_fails_its_work(database: Database) -> None:
    with pytest.raises(ValueError, match="too long"):
        await database.write(says("ä" * MOST_SAID))
    ear = Ear(database)
    many = [f"{number:04}" + "ä" * (MOST_SAID // 2 - 10) for number in range(20)]
    await database.write(says(*many))
    await ear.until(many[-1])
    assert [message for message in ear.heard if message] == many


# --- URLs


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///a.db?mode=ro",
        "nonsense",
        "mysql://user:secret@host/x",
        "postgresql+asyncpg://user:secret@host/x",
    ],
)
def test_a_url_that_cannot_be_used_is_told_what_can(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Database.open(url)
    assert "postgresql://" in str(caught.value)
    assert "secret" not in str(caught.value)
