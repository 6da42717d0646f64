"""A request for output that may take its time: until there is more, or the run is over."""

import asyncio
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, update
from starlette.requests import ClientDisconnect, Request

from agent_control_plane import commands, reading, schemas
from agent_control_plane.hanging import hanging_up
from agent_control_plane.ledger import load
from agent_control_plane.plane import Plane
from agent_control_plane.states import FINAL, HELD
from agent_control_plane.tables import tasks
from agent_control_plane.tasks import row_of
from agent_core.api.wire import Json, Word

GOES_ON: Final = 15.0  # seconds that a reader may take until it asks for the next piece

_WATCHED = (
    update(tasks).where(tasks.c.id == bindparam("_task")).values(watched_until=bindparam("until"))
)


class _Found(NamedTuple):
    told: dict[str, Json]
    watched_until: float


async def output(
    plane: Plane, task_id: str, query: schemas.LogsQuery, request: Request
) -> dict[str, Json]:
    """A piece of output. Raises ClientDisconnect if nobody waits for it any more."""
    if query.wait_sec == 0:
        return (await _read(plane, task_id, query)).told
    ends = plane.clock.boottime() + query.wait_sec
    with plane.followers.follow(task_id) as more:
        async with hanging_up(request) as gone:
            known = False
            while not gone.done():
                more.clear()
                told, watched_until = await _read(plane, task_id, query)
                known = known or watched_until >= plane.clock.wall() + query.wait_sec
                if not known and not told["eof"]:
                    await _watch(plane, task_id, query.wait_sec)
                    known = True
                    continue  # what came before that was known was told to nobody
                left = ends - plane.clock.boottime()
                came = told["eof"] or told["next_offset"] > query.offset
                if came or left <= 0 or plane.followers.stopped:
                    return told
                await _first(plane, more, left, gone)
    raise ClientDisconnect


async def _first(
    plane: Plane, more: asyncio.Event, seconds: float, gone: "asyncio.Task[None]"
) -> None:
    timer = asyncio.ensure_future(plane.clock.sleep(seconds))
    woken = asyncio.ensure_future(more.wait())
    try:
        await asyncio.wait((timer, woken, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()
        woken.cancel()


async def _read(plane: Plane, task_id: str, query: schemas.LogsQuery) -> _Found:
    def work(connection: Connection) -> _Found:
        row = row_of(connection, task_id)
        return _Found(reading.output(connection, row, query), row["watched_until"] or 0.0)

    return await plane.db.read(work)


async def _watch(plane: Plane, task_id: str, wait_sec: int) -> None:
    """Note that somebody reads along, and tell the agent that runs the task."""
    now = plane.clock.wall()

    def work(connection: Connection) -> None:
        task, _ = load(connection, task_id)
        if task.status in FINAL:
            return
        until = now + wait_sec + GOES_ON
        connection.execute(_WATCHED, {"_task": task_id, "until": until})
        if task.status in HELD and Word.LOGS in plane.words:
            commands.watch(connection, task, now)

    await plane.db.write(work)
