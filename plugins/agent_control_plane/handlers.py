"""What happens behind each route: a call becomes one piece of work for the database."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request

from agent_control_plane import (
    agents,
    batches,
    claims,
    explain,
    following,
    idempotency,
    logs,
    queue,
    schemas,
    tasks,
)
from agent_control_plane.plane import Plane
from agent_control_plane.states import Terms
from agent_core.api.http import Call, Problem, Reply
from agent_core.api.wire import Code, Json, Word

Handler = Callable[[Call], Awaitable[Reply]]
Spoken = Callable[[Connection, str, Any, float, Terms], Json]


class AgentCalls:
    """What agents ask."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def register(self, call: Call) -> Reply:
        return await _write(
            self._plane, agents.register, call.body, self._plane.terms, self._plane.words
        )

    async def heartbeat(self, call: Call) -> Reply:
        plane, older = self._plane, _older(call.request)
        return await _write(plane, agents.heartbeat, call.body, plane.words, older)

    async def claim(self, call: Call) -> Reply:
        body: schemas.Claim = call.body
        asked = queue.Asked(
            agent_id=body.agent_id,
            machine_id=body.machine_id,
            limit=body.limit,
            request_id=body.request_id or "",
            older=_older(call.request),
            older_workers=self._plane.settings.older_agent_workers,
            free=body.free,
        )
        data = await claims.answer(self._plane, asked, body.wait_sec, call.request)
        return Reply(data=data, headers={"Cache-Control": "no-store"})

    async def events(self, call: Call) -> Reply:
        plane = self._plane
        batch = batches.Batch(
            call=call.body,
            now=plane.clock.wall(),
            terms=plane.terms,
            commanded=Word.COMMANDS in plane.words,
        )
        return Reply(data=await batches.taken(plane.db, batch))

    async def log(self, call: Call) -> Reply:
        plane, now, task_id = self._plane, self._plane.clock.wall(), _task_id(call)
        most = plane.settings.output_kept
        told = await plane.db.write(
            lambda connection: logs.append(connection, task_id, call.body, now, most)
        )
        if isinstance(told, Problem):
            raise told
        return Reply(data=told)

    def of_attempt(self, spoken: Spoken) -> Handler:
        plane = self._plane

        async def handler(call: Call) -> Reply:
            now, task_id = plane.clock.wall(), _task_id(call)
            data = await plane.db.write(
                lambda connection: spoken(connection, task_id, call.body, now, plane.terms)
            )
            return Reply(data=data)

        return handler


async def _write(plane: Plane, work: Callable[..., Json], body: Any, *more: Any) -> Reply:
    now = plane.clock.wall()
    return Reply(data=await plane.db.write(lambda connection: work(connection, body, now, *more)))


def _older(request: Request) -> bool:
    """An agent without our header, or with one that is no version, whatever its id did before."""
    version = request.headers.get("x-agent-protocol", "")
    return not (version.isascii() and version.isdigit() and int(version[:9]) >= 1)


class UserCalls:
    """What users ask."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def submit(self, call: Call) -> Reply:
        plane, now = self._plane, self._plane.clock.wall()

        def effect(connection: Connection) -> Json:
            return tasks.submit(connection, call.body, now, plane.terms, plane.gauge)

        return await self._once(call, now, effect)

    async def retry(self, call: Call) -> Reply:
        plane, now, task_id = self._plane, self._plane.clock.wall(), _task_id(call)

        def effect(connection: Connection) -> Json:
            return tasks.retry(connection, task_id, now, plane.terms, plane.gauge)

        return await self._once(call, now, effect)

    async def _once(self, call: Call, now: float, effect: Callable[[Connection], Json]) -> Reply:
        key = call.request.headers.get("idempotency-key")
        if key is None:
            return Reply(data=await self._plane.db.write(effect), status=201)
        if wrong := schemas.key_problem(key):
            raise Problem(Code.INVALID, wrong)
        request = (key, call.request.method, call.request.url.path)
        # Without what it does not say: a field that comes with an upgrade makes no other body.
        body = call.body.model_dump(mode="json", exclude_defaults=True)
        answer = await self._plane.db.write(
            lambda connection: idempotency.once(
                connection, request, body, now, lambda: effect(connection)
            )
        )
        if isinstance(answer, Problem):
            raise answer
        return answer

    async def listed(self, call: Call) -> Reply:
        return await self._read(tasks.listed, call.query)

    async def look(self, call: Call) -> Reply:
        return await self._read(tasks.look, _task_id(call))

    async def explain(self, call: Call) -> Reply:
        plane, now, task_id = self._plane, self._plane.clock.wall(), _task_id(call)
        workers = plane.settings.older_agent_workers
        return Reply(
            data=await plane.db.read(
                lambda connection: explain.explain(connection, task_id, now, workers)
            )
        )

    async def output(self, call: Call) -> Reply:
        told = await following.output(self._plane, _task_id(call), call.query, call.request)
        return Reply(data=told)

    async def describe(self, call: Call) -> Reply:
        return await self._change(tasks.describe, call)

    async def cancel(self, call: Call) -> Reply:
        return await self._change(tasks.cancel, call)

    async def remove(self, call: Call) -> Reply:
        task_id = _task_id(call)
        return Reply(data=await self._plane.db.write(lambda conn: tasks.remove(conn, task_id)))

    async def _change(self, work: Spoken, call: Call) -> Reply:
        plane, now, task_id = self._plane, self._plane.clock.wall(), _task_id(call)
        return Reply(
            data=await plane.db.write(
                lambda connection: work(connection, task_id, call.body, now, plane.terms)
            )
        )

    async def _read(self, work: Callable[..., Json], what: Any) -> Reply:
        plane, now = self._plane, self._plane.clock.wall()
        return Reply(
            data=await plane.db.read(lambda connection: work(connection, what, now, plane.terms))
        )


def _task_id(call: Call) -> str:
    """The id of the address; what cannot be one is no task's, and never reaches the database."""
    task_id = call.path["id"]
    if not task_id.isprintable() or len(task_id) > 255:
        raise Problem(Code.NO_SUCH_TASK, "there is no task of that id")
    return task_id
