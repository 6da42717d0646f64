"""The ASGI application: the route table behind one envelope for success and failure."""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, compile_path
from starlette.types import ASGIApp

from agent_control_plane.openapi import openapi
from agent_control_plane.plane import Plane
from agent_control_plane.routes import endpoints
from agent_core import log
from agent_core.api.http import Endpoint, Problem, admit, dated, json_response
from agent_core.api.wire import Code, envelope

DOCUMENT: Final = "/openapi.json"
_log = log.get("server")


def create_app(plane: Plane) -> ASGIApp:
    """The app of a plane; its lifespan runs the plane and closes it."""
    table = endpoints(plane)
    document = functools.cache(lambda: openapi(table))  # made when somebody asks for it

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with plane.running():
            yield

    async def openapi_json(_request: Request) -> Response:
        return json_response(document(), 200)

    app = Starlette(
        routes=[
            *(Route(row.path, _serve(row), methods=[row.method]) for row in table),
            Route(DOCUMENT, openapi_json, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _no_route(table)},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would turn a POST into a GET
    return dated(app, plane.clock.wall)


def _serve(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        try:
            call = await admit(endpoint, request)
            reply = await endpoint.handler(call)
            return json_response(envelope(reply.data), reply.status, reply.headers)
        except Problem as problem:
            return _refusal(problem)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception:
            _log.exception("a request failed", method=request.method, path=request.url.path)
            return _refusal(Problem(Code.INTERNAL, "internal error; the server's log says more"))

    return serve


def _refusal(problem: Problem) -> Response:
    headers = dict(problem.headers)
    if problem.status == 503:
        headers.setdefault("Retry-After", "1")
    body = envelope(problem.data, code=problem.code, message=problem.message)
    return json_response(body, problem.status, headers)


def _no_route(table: Sequence[Endpoint]) -> Callable[[Request, Exception], Awaitable[Response]]:
    routes = [*((row.method, row.path) for row in table), ("GET", DOCUMENT)]
    patterns = [(method, compile_path(path)[0]) for method, path in routes]

    async def no_route(request: Request, _error: Exception) -> Response:
        method, path = request.method[:20], request.url.path
        allowed = sorted(known for known, pattern in patterns if pattern.match(path))
        if not allowed:
            words = f"no such route: {method} {path[:200]}; GET /openapi.json lists what there is"
            return _refusal(Problem(Code.NO_ROUTE, words))
        words = f"{method} is not possible on {path[:200]}; {', '.join(allowed)} is"
        allow = {"Allow": ", ".join(allowed)}
        return _refusal(Problem(Code.NO_ROUTE, words, status=405, headers=allow))

    return no_route
