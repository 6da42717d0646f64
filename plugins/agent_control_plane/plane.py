"""The control plane at work: its database, clock and terms, and what it does by itself."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from typing import Final

from sqlalchemy import Connection, select

from agent_control_plane import agents, commands, idempotency, messages, queue
from agent_control_plane.db import Database
from agent_control_plane.followers import Followers
from agent_control_plane.ledger import SWEPT_AT_ONCE, next_due, sweep
from agent_control_plane.settings import ServerSettings
from agent_control_plane.tasks import Gauge
from agent_control_plane.waker import Waker
from agent_core import log
from agent_core.api.http import Problem
from agent_core.clock import Clock

SWEEP_EVERY: Final = 5.0  # seconds; a claim sweeps too, so nobody waits for this
SWEEP_PAUSE: Final = 0.2  # seconds at least; what is due may be held by another server
FORGET_EVERY: Final = 600.0  # seconds


class Plane:
    """What every route works with."""

    def __init__(self, settings: ServerSettings, database: Database, clock: Clock) -> None:
        self.settings = settings
        self.terms = settings.terms()
        self.words = frozenset(settings.extensions)
        self.db = database
        self.clock = clock
        self.gauge = Gauge(settings.max_queue)
        self.waker = Waker(clock)
        self.followers = Followers()
        self._due_at = math.inf  # when the next row is due, as far as known
        self._sooner = asyncio.Event()
        self._log = log.get("server")
        self._forgot_at = clock.wall()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep time until the end, then close the database."""
        self.db.listen(self._heard)
        keeper = asyncio.create_task(self._keep_time(), name="keep time")
        try:
            yield
        finally:
            self.stop()
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await self.db.close()

    def stop(self) -> None:
        """Answer whoever hangs; nobody does any more."""
        self.waker.stop()
        self.followers.stop()

    def _heard(self, said: Sequence[str] | None) -> None:
        if said is None:
            self.waker.missed()
            self.followers.missed()
            return
        for text in said:
            message = messages.read(text)
            if isinstance(message, messages.Due):
                if message.at < self._due_at:
                    self._due_at = message.at
                    self._sooner.set()
            elif isinstance(message, messages.Written):
                self.followers.heard(message.task_id)
            elif message is not None:
                self.waker.heard(message)

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
        commands.forget(connection)

    async def _until_due(self) -> None:
        """Sleep until a row is due, or a while."""
        while True:
            self._sooner.clear()
            left = max(self._due_at - self.clock.wall(), SWEEP_PAUSE)
            sleep = asyncio.ensure_future(self.clock.sleep(min(left, SWEEP_EVERY)))
            sooner = asyncio.ensure_future(self._sooner.wait())
            try:
                await asyncio.wait((sleep, sooner), return_when=asyncio.FIRST_COMPLETED)
                if sleep.done():
                    return
            finally:
                sleep.cancel()
                sooner.cancel()

    async def _keep_time(self) -> None:
        failing = False
        while True:
            await self._until_due()
            self._due_at = math.inf
            try:
                await self.sweep()
                self._due_at = min(self._due_at, await self.db.read(next_due))
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
