"""One connection that hears what other servers on the same PostgreSQL database say."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from agent_core import log
from agent_core.backoff import Backoff

_log = log.get("database")


class Listener:
    """Listens in the running loop until its end, again after every loss of the connection.

    `heard` gets each payload, and None after each (re)connection: before it some were missed.
    """

    def __init__(
        self, conninfo: Mapping[str, Any], channel: str, heard: Callable[[str | None], None]
    ) -> None:
        self._conninfo = conninfo
        self._channel = channel
        self._heard = heard
        self._backoff = Backoff(0.5, 10)
        self._deaf = False
        self._task = asyncio.get_running_loop().create_task(
            self._listen(), name="listen to other servers"
        )

    async def end(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _listen(self) -> None:
        while True:
            try:
                await self._while_connected()
            except Exception as error:  # nobody would be woken any more
                if not self._deaf:
                    words = " ".join(str(error).split())
                    _log.error("other servers cannot be heard, trying again", why=words)
                self._deaf = True
            await asyncio.sleep(self._backoff.next())

    async def _while_connected(self) -> None:
        from psycopg import AsyncConnection, sql  # noqa: PLC0415  # an extra

        connection = await AsyncConnection.connect(**self._conninfo, autocommit=True)
        async with connection:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            if self._deaf:
                _log.info("other servers are heard again")
            self._deaf = False
            self._backoff.reset()
            self._heard(None)
            async for note in connection.notifies():
                self._heard(note.payload)
