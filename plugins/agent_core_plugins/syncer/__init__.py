"""The plugin that tells whoever gave the tasks what became of them, until they have taken it."""

import asyncio
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from agent_core import (
    AgentHandle,
    Answer,
    Backoff,
    Clock,
    Event,
    Key,
    PluginContext,
    Receipt,
    Section,
    StoreError,
    Unreachable,
    hookimpl,
    pause,
)
from agent_core_plugins.syncer.sources import MANY, Source

BATCH = 100  # events at most in one report
GATHER = 0.04  # seconds after a report in which events gather; what comes later goes at once
MUCH = 10  # events in one report, from which on they gather for longer: fewer reports cost less
GATHER_MUCH = 0.1  # seconds; a dozen events in 40 ms are three hundred a second
REPORT_LIMIT = 600.0  # seconds for one report


class SyncerSettings(Section):
    """Nothing to set."""


class Syncer:
    """Reads the outbox, hands it to its sources, settles what they answer.

    The events of one task go in order, together or one after the other was settled, never side by
    side; tasks go side by side, some reports at once to each source. What is not settled is told
    again. A report leaves at once when it is quiet; where much happens, events gather for it.
    """

    Settings = SyncerSettings

    def __init__(self, settings: SyncerSettings, context: PluginContext) -> None:
        self._clock = context.clock
        self._log = context.log
        self._rng = random.Random()

    @hookimpl
    async def serve(self, agent: AgentHandle) -> None:
        await Delivery(agent, self._clock, self._log, self._rng).run()


class Delivery:
    """One life of an agent: which sources there are, and what is under way to them."""

    def __init__(self, agent: AgentHandle, clock: Clock, log: Any, rng: random.Random) -> None:
        self._agent = agent
        self._clock = clock
        self._log = log
        self._rng = rng
        self._sources: dict[str, Source] = {}
        self._wake = asyncio.Event()
        self._gathered = -math.inf  # boot time, when the next report may leave
        self._reading = Backoff(rng=rng)
        self._unread = ""  # why the outbox cannot be read, said once

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="syncer new events")
            group.create_task(self._hurry_at_the_end(), name="syncer stop")
            while True:
                await self._gather()
                self._wake.clear()
                if not await self._start(group):
                    await pause(self._until_next(), self._wake, clock=self._clock)

    async def _gather(self) -> None:
        """Few large reports cost a fraction of many small ones, on both sides."""
        left = self._gathered - self._clock.boottime()
        if left > 0:
            await pause(left, self._agent.stopping, clock=self._clock)

    async def _listen(self) -> None:
        while True:
            await self._agent.outbox_grew()
            self._wake.set()

    async def _hurry_at_the_end(self) -> None:
        """The agent waits a moment for what is still to be told: patience is over."""
        await self._agent.stopping.wait()
        for source in self._sources.values():
            source.hurry()
        self._wake.set()

    # --- who is told what

    async def _start(self, group: asyncio.TaskGroup) -> bool:
        """Send what may be sent now. False if there is nothing."""
        try:
            probes = await self._probes()
            events = probes or await self._batch()
        except StoreError as error:
            await self._cannot_read(error)
            return True
        self._can_read()
        left = len(events)
        for name in dict.fromkeys(event.source for event in events):
            source = self._sources.setdefault(name, Source(name=name, rng=self._rng))
            batch = source.batch([event for event in events if event.source == name])
            left -= len(batch)
            source.lanes += 1
            source.busy.update(event.key for event in batch)
            group.create_task(self._deliver(source, batch), name=f"syncer to {name}")
        if events and not left and not probes and len(events) < BATCH:  # so no more waits
            longer = len(events) >= MUCH
            self._gathered = self._clock.boottime() + (GATHER_MUCH if longer else GATHER)
        return bool(events)

    async def _probes(self) -> list[Event]:
        """One event for a source that was away and is to be tried again: enough to find out.

        Rather of a task that no report has failed with yet.
        """
        now = self._clock.boottime()
        tried = [each for each in self._sources.values() if each.away and each.ready(now)]
        if not tried:
            return []
        closed = self._sources.keys() - {each.name for each in tried}
        late = set[Key]().union(*(each.late for each in tried))
        return await self._read(1, now, closed, late) or await self._read(1, now, closed)

    async def _batch(self) -> list[Event]:
        now = self._clock.boottime()
        closed = {each.name for each in self._sources.values() if each.away or not each.ready(now)}
        return await self._read(BATCH, now, closed)

    async def _read(
        self, limit: int, now: float, closed: Collection[str], others: Collection[Key] = ()
    ) -> list[Event]:
        skip = set(others).union(*(each.waiting(now) for each in self._sources.values()))
        return await self._agent.outbox(limit=limit, skip=skip, skip_sources=closed)

    def _until_next(self) -> float:
        now = self._clock.boottime()
        times = [source.next_time(now) for source in self._sources.values()]
        return min((time for time in times if time is not None), default=math.inf) - now

    async def _cannot_read(self, error: StoreError) -> None:
        if not self._unread:
            self._log.error("events to report cannot be read, trying again", why=str(error))
        self._unread = str(error)
        await self._clock.sleep(self._reading.next())

    def _can_read(self) -> None:
        self._reading.reset()
        if self._unread:
            self._log.info("events to report can be read again")
        self._unread = ""

    # --- one lane

    async def _deliver(self, source: Source, events: Sequence[Event]) -> None:
        keys = {event.key for event in events}
        try:
            await self._tell(source, events)
        finally:
            source.lanes -= 1
            source.busy -= keys
            self._wake.set()

    async def _tell(self, source: Source, events: Sequence[Event]) -> None:
        """Report, settle, and draw the conclusions."""
        try:
            receipts = _in_order(events, await self._report(events))
        except Exception as error:
            self._failed(source, events, error)
            return
        if source.answered(self._clock.boottime()):
            self._log.info("the source can be reached again", source=source.name)
        await self._settle(receipts)
        self._judge(source, events, receipts)

    async def _report(self, events: Sequence[Event]) -> Sequence[Receipt]:
        report = asyncio.ensure_future(self._agent.report(events))
        limit = asyncio.ensure_future(self._clock.sleep(REPORT_LIMIT))
        try:
            await asyncio.wait({report, limit}, return_when=asyncio.FIRST_COMPLETED)
            if not report.done():
                raise Unreachable(f"no answer in {REPORT_LIMIT:g} s")
            return report.result()
        finally:
            report.cancel()
            limit.cancel()
            # Its tasks are not free before it has really ended.
            await asyncio.gather(report, limit, return_exceptions=True)

    def _failed(self, source: Source, events: Sequence[Event], error: Exception) -> None:
        known = isinstance(error, Unreachable)
        why = str(error) if known else f"{type(error).__name__}: {error}"
        keys = {event.key for event in events}
        newly = source.failed(
            keys, why, self._clock.boottime(), getattr(error, "retry_after", None)
        )
        if newly:
            self._log.warning(
                "the source cannot be reached; what is to be told is kept and told when it can",
                source=source.name,
                why=why,
                exc_info=None if known else error,
            )
        elif not source.away:
            self._log.warning(
                "a task's event cannot be told now, others go on",
                source=source.name,
                task=events[0].key.task_id,
                why=why,
            )

    async def _settle(self, receipts: Sequence[Receipt]) -> None:
        """Until it is kept: else it would all be told again."""
        backoff = Backoff(rng=self._rng)
        told = False
        while True:
            try:
                await self._agent.settle(receipts)
                return
            except StoreError as error:
                if not told:
                    self._log.error("what was reported cannot be settled yet", why=str(error))
                told = True
                await self._clock.sleep(backoff.next())

    def _judge(self, source: Source, events: Sequence[Event], receipts: Sequence[Receipt]) -> None:
        now = self._clock.boottime()
        done = False
        late: dict[Key, float | None] = {}  # each task once, however many of its events wait
        for event, receipt in zip(events, receipts, strict=True):
            if receipt.answer is Answer.RETRY:
                late.setdefault(event.key, receipt.retry_after)
                continue
            source.settled(event.key)
            done = True
            if receipt.answer is Answer.REFUSED:
                self._log.error(
                    "an event was refused for ever; it and its task's outcome are kept "
                    "in the agent's database, table dead_letters",
                    source=source.name,
                    task=event.key.task_id,
                    event_kind=event.kind.value,
                    seq=event.seq,
                    code=int(receipt.code),
                    why=receipt.message,
                )
        for key, retry_after in late.items():
            source.put_off(key, now, retry_after)
        if done:
            source.backoff.reset()
        elif len(late) >= MANY:
            source.slow(now, max((each.retry_after or 0.0 for each in receipts), default=0.0))


def _in_order(events: Sequence[Event], receipts: Sequence[Receipt]) -> Sequence[Receipt]:
    """What comes after an event that waits has to wait, too, and is told again with it."""
    waiting: set[Key] = set()
    found = list(receipts)
    for place, (event, receipt) in enumerate(zip(events, receipts, strict=True)):
        if receipt.answer is Answer.RETRY:
            waiting.add(event.key)
        elif event.key in waiting:
            found[place] = replace(receipt, answer=Answer.RETRY, retry_after=None)
    return found
