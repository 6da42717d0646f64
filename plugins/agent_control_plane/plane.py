"""The control plane at work: its database, clock and terms, and what it does by itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from sqlalchemy import Connection, select

from agent_control_plane import agents, idempotency, queue
from agent_control_plane.db import Database
from agent_control_plane.ledger import SWEPT_AT_ONCE, sweep
from agent_control_plane.settings import ServerSettings
from agent_control_plane.tasks import Gauge
from agent_core import log
from agent_core.api.http import Problem
from agent_core.api.wire import Word
from agent_core.clock import Clock

SWEEP_EVERY: Final = 5.0  # seconds; a claim sweeps too, so nobody waits for this
SPOKEN: Final = frozenset({Word.EVENTS})
FORGET_EVERY: Final = 600.0  # seconds


class Plane:
    """What every route works with."""

    def __init__(self, settings: ServerSettings, database: Database, clock: Clock) -> None:
        self.settings = settings
        self.terms = settings.terms()
        self.words = frozenset(settings.extensions) & SPOKEN
        self.db = database
        self.clock = clock
        self.gauge = Gauge(settings.max_queue)
        self._log = log.get("server")
        self._forgot_at = clock.wall()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep time until the end, then close the database."""
        keeper = asyncio.create_task(self._keep_time(), name="keep time")
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await self.db.close()

    async def sweep(self) -> None:
        """What time has changed, in as many transactions as it takes."""
        while await self.db.write(self._sweep_some) >= SWEPT_AT_ONCE:
            pass

    async def forget(self) -> None:
        """What has been kept long enough."""
        await self.db.write(self._forget)

    async def healthy(self) -> None:
        """Raises if the database cannot be read."""
        await self.db.read(lambda connection: connection.execute(select(1)).scalar())

    def _sweep_some(self, connection: Connection) -> int:
        return sweep(connection, self.clock.wall(), self.terms)

    def _forget(self, connection: Connection) -> None:
        now = self.clock.wall()
        idempotency.forget(connection, now)
        queue.forget(connection, now)
        agents.forget(connection, now)

    async def _keep_time(self) -> None:
        failing = False
        while True:
            await self.clock.sleep(SWEEP_EVERY)
            try:
                await self.sweep()
                if self.clock.wall() - self._forgot_at >= FORGET_EVERY:
                    self._forgot_at = self.clock.wall()
                    await self.forget()
            except Exception as error:  # a full disk must not end the server; said once a change
                if not failing and isinstance(error, Problem):
                    self._log.error("leases cannot be swept, trying again", why=str(error))
                elif not failing:
                    self._log.exception("leases cannot be swept, trying again", error=str(error))
                failing = True
            else:
                if failing:
                    self._log.info("leases are swept again")
                failing = False
