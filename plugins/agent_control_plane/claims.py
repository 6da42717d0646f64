"""A claim from its request to its answer: at once, or when there is something, or time is up."""

from typing import NamedTuple

from sqlalchemy import Connection
from starlette.requests import ClientDisconnect, Request

from agent_control_plane import commands, queue
from agent_control_plane.commands import Told
from agent_control_plane.db import several_write
from agent_control_plane.hanging import hanging_up
from agent_control_plane.messages import Asks, say
from agent_control_plane.plane import Plane
from agent_control_plane.queue import Asked, Granted
from agent_control_plane.waker import Waiter
from agent_core.api.wire import Json, Word


class _Found(NamedTuple):
    granted: Granted
    told: Told


async def answer(plane: Plane, asked: Asked, wait_sec: int, request: Request) -> dict[str, Json]:
    """What the claim brings. Raises ClientDisconnect if nobody waits for it any more."""
    if asked.older or Word.WAIT not in plane.words:
        return _data(plane, asked, await _look(plane, asked))
    if wait_sec == 0:
        plane.waker.dismiss(asked.agent_id)
        return _data(plane, asked, await _look(plane, asked))
    waiter = plane.waker.enlist(asked.agent_id)
    try:
        return _data(plane, asked, await _hang(plane, asked, wait_sec, request, waiter))
    finally:
        plane.waker.leave(waiter)


async def _hang(
    plane: Plane, asked: Asked, wait_sec: int, request: Request, waiter: Waiter
) -> _Found:
    ends = plane.clock.boottime() + wait_sec
    async with hanging_up(request) as gone:
        while True:
            if gone.done():
                raise ClientDisconnect
            found = await _look(plane, asked, waiter)
            waiter.woken_for = None
            left = ends - plane.clock.boottime()
            if found.granted.tasks or found.told.commands or left <= 0:
                return found
            if found.told.again_at is not None:
                left = min(left, max(found.told.again_at - plane.clock.wall(), 1.0))
            woken = await plane.waker.wait(waiter, found.granted.offer, left, gone)
            if waiter.over or not (woken or gone.done() or plane.clock.boottime() < ends):
                return found


async def _look(plane: Plane, asked: Asked, waiter: Waiter | None = None) -> _Found:
    now, terms = plane.clock.wall(), plane.terms
    first = waiter is not None and waiter.offer is None

    def work(connection: Connection) -> _Found:
        granted = queue.claim(connection, asked, now, terms)
        told = commands.NONE
        if not asked.older and Word.COMMANDS in plane.words:
            told = commands.tell(connection, asked.agent_id, now)
        if first and waiter is not None and several_write(connection):
            say(connection, Asks(asked.agent_id, waiter.made))
        return _Found(granted, told)

    return await plane.db.write(work)


def _data(plane: Plane, asked: Asked, found: _Found) -> dict[str, Json]:
    data: dict[str, Json] = {"tasks": found.granted.tasks}
    if not asked.older and Word.COMMANDS in plane.words:
        data["commands"] = list(found.told.commands)
    return data
