"""Whether the client of a request that takes its time is still there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request


@contextlib.asynccontextmanager
async def hanging_up(request: Request) -> AsyncIterator["asyncio.Task[None]"]:
    """A task that ends when the client hangs up; the request's body has been read."""
    gone = asyncio.create_task(_hung_up(request), name="client of a hanging request")
    try:
        yield gone
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
