"""Small works for a database, and several of them at once."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, text

from agent_control_plane.db import Database
from tests.agent_control_plane.kit import Place

MAKE = text("CREATE TABLE kept (id INTEGER PRIMARY KEY, data TEXT)")
_INSERT = text("INSERT INTO kept VALUES (:id, :data)")
WRITERS = 4  # threads, at most


def insert(number: int, size: int = 10) -> Callable[[Connection], int]:
    def work(connection: Connection) -> int:
        connection.execute(_INSERT, {"id": number, "data": "x" * size})
        return number

    return work


def kept(place: Place) -> set[int]:
    """What another program reads there."""
    return {row[0] for row in place.query("SELECT id FROM kept")}


@contextlib.contextmanager
def writers_held(database: Database) -> Iterator[None]:
    """What is asked within waits in the line together."""
    go = threading.Event()
    waiting = [
        asyncio.ensure_future(database.write(lambda _connection: go.wait(30)))
        for _ in range(WRITERS)
    ]
    try:
        yield
    finally:
        go.set()
    assert len(waiting) == WRITERS


async def together(database: Database, *works: Callable[[Connection], Any]) -> list[Any]:
    with writers_held(database):
        await asyncio.sleep(0)
        asked = [asyncio.ensure_future(database.write(work)) for work in works]
        await asyncio.sleep(0)
    return await asyncio.gather(*asked, return_exceptions=True)
