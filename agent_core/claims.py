"""Brings work in: one loop a source, each with its own back-off."""

import asyncio
from dataclasses import replace
from typing import Any

from agent_core.backoff import pause
from agent_core.errors import StoreError, Unreachable, reason_of
from agent_core.log import get
from agent_core.models import Claim, Demand, Task
from agent_core.workbench import Workbench
from agent_core.worker import Worker

AT_ONCE = 1.0  # seconds; an empty answer that came sooner is asked for again after that long
FULL_AGAIN = 30.0  # seconds; likewise, where nothing could be taken and that does not change


class Source:
    """Asks one plugin for as much as there is room for, and stores what it brings."""

    def __init__(self, name: str, bench: Workbench, worker: Worker) -> None:
        self._name = name
        self._bench = bench
        self._worker = worker
        self._backoff = bench.backoff()
        self._trouble = ""  # said once a change
        self._most = 0  # tasks that were asked for, with a question and all that followed it
        self._log = get("claims")

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping`; a claim in flight is awaited then, or its answer would be lost.

        Only an agent that leaves at once cancels it.
        """
        while not stopping.is_set():
            changed = self._worker.demands.changed.next()
            try:
                self._most = 0
                await self._ask(self._demand(), changed, stopping)
            finally:
                changed.cancel()

    def _demand(self) -> Demand:
        demand = self._worker.demands.now()
        self._most = max(self._most, demand.slots)
        return replace(demand, again=self._demand)

    async def _ask(
        self, demand: Demand, changed: "asyncio.Future[None]", stopping: asyncio.Event
    ) -> None:
        """Once; returns when it may be asked again."""
        asked_at = self._bench.clock.boottime()
        try:
            claim = await self._bench.hooks.claim(self._name, demand)
            fresh = await self._keep(claim)
            self._worker.returns.heard(self._name, takes_back=claim.takes_back)
        except Exception as error:
            await pause(self._trouble_with(error), stopping)
            return
        self._well_again()
        if len(fresh) > self._most and demand.urgent_at_most is None:
            self._log.warning("more came than was asked for", source=self._name, by=len(fresh))
        await self._worker.admit(fresh)
        at_once = not fresh and self._bench.clock.boottime() - asked_at < AT_ONCE
        if at_once and demand.slots == 0:  # it does not wait for words to a full agent
            await _until(changed, max(claim.ask_again, FULL_AGAIN), stopping)
        elif at_once:  # or it would be asked as fast as it can say no
            await pause(max(claim.ask_again, AT_ONCE), stopping)
        elif claim.ask_again > 0:
            await pause(claim.ask_again, stopping)

    async def _keep(self, claim: Claim) -> list[Task]:
        """Tasks and facts in one transaction: after a crash in between, the source asks again."""
        if not claim.tasks and not claim.facts:
            return []
        tasks = [
            task if task.source == self._name else replace(task, source=self._name)
            for task in claim.tasks
        ]
        return await self._worker.firsts.store(tasks, claim.facts)

    def _trouble_with(self, error: Exception) -> float:
        """Say it if it is new; seconds until the next try."""
        told = reason_of(error)
        if told != self._trouble:
            self._trouble = told
            if isinstance(error, Unreachable | StoreError):
                self._log.warning("no work can be claimed now", source=self._name, why=told)
            else:
                self._log.error("a source failed", source=self._name, exc_info=error)
        return self._backoff.next(getattr(error, "retry_after", None))

    def _well_again(self) -> None:
        self._backoff.reset()
        if self._trouble:
            self._trouble = ""
            self._log.info("work is claimed again", source=self._name)


async def _until(changed: "asyncio.Future[None]", limit: float, stopping: asyncio.Event) -> None:
    stop: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({changed, stop}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
