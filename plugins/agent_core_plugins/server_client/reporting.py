"""From events to what the server takes, batches or single calls, and from answers to receipts."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agent_core import (
    AgentHandle,
    Answer,
    Code,
    Event,
    EventKind,
    Json,
    Receipt,
    Unreachable,
    wire,
)
from agent_core_plugins.server_client.contact import Contact
from agent_core_plugins.server_client.courier import ROOM, Courier
from agent_core_plugins.server_client.forms import SMALLEST_BODY, complete_fields, entry, error_of
from agent_core_plugins.server_client.http import Reply
from agent_core_plugins.server_client.leases import AT_ONCE, Leases, task_path
from agent_core_plugins.server_client.logs import Logs

_BATCHED = (EventKind.START, EventKind.RUN, EventKind.COMPLETE)


class Reporter:
    """Tells events to the server. May be repeated: the server knows what it heard before."""

    def __init__(
        self, contact: Contact, courier: Courier, leases: Leases, logs: Logs, *, log: Any
    ) -> None:
        self._contact = contact
        self._courier = courier
        self._leases = leases
        self._logs = logs
        self._log = log
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._body_limit = wire.COMPLETE_BODY_LIMIT

    async def report(self, agent: AgentHandle, events: Sequence[Event]) -> list[Receipt]:
        """One receipt an event, by position; tasks side by side, a task's events in order.

        Raises Unreachable if the server answered none of them, or does not register this agent.
        """
        # Before anything is told: an unknown server would be sent plain exit codes alone, and
        # what was refused or cancelled would be on record there as a mere failure.
        await self._contact.registered(agent)
        await self._logs.finish(events)
        receipts: list[Receipt | None] = [None] * len(events)
        outage: Unreachable | None = None
        if self._contact.speaks(wire.Word.EVENTS):
            outage = await self._in_batches(agent, events, receipts)
            if self._contact.speaks(wire.Word.EVENTS):
                return _all(events, receipts, outage)
        return _all(events, receipts, await self._one_by_one(agent, events, receipts))

    async def _in_batches(
        self, agent: AgentHandle, events: Sequence[Event], receipts: "list[Receipt | None]"
    ) -> Unreachable | None:
        """What a batch takes and what else has to be said, each into its place."""
        limit = self._contact.limits.bytes - ROOM
        places = [place for place, event in enumerate(events) if event.kind in _BATCHED]
        items = [await self._entry(events[place], limit) for place in places]
        told = await self._courier.tell(items)
        for place, result in zip(places, told.results, strict=True):
            told_alone = result is not None and result.data is False
            if result is None or (told_alone and events[place].kind is not EventKind.RUN):
                continue  # the latter has a call of its own
            receipts[place] = _receipt(events[place], result)
            if result.code == Code.LEASE_OVER:
                await self._leases.renew(agent, events[place].key)
        if told.error is None:
            return await self._one_by_one(agent, events, receipts)
        return told.error

    async def _entry(self, event: Event, limit: int) -> bytes:
        """Output that no batch could hold goes ahead by itself; what cannot is cut."""
        outcome = event.outcome
        if outcome and len(outcome.stdout) + len(outcome.stderr) > limit * 3 // 4:
            try:
                if self._contact.speaks(wire.Word.LOGS) and await self._logs.carry(event):
                    event = replace(event, outcome=replace(outcome, stdout=b"", stderr=b""))
            except Unreachable as error:
                self._log.info("a long output is cut", task=event.key.task_id, reason=str(error))
        return entry(event, limit)

    async def _one_by_one(
        self, agent: AgentHandle, events: Sequence[Event], receipts: "list[Receipt | None]"
    ) -> Unreachable | None:
        """Single calls for what has no receipt yet; an outage if none of them got an answer."""
        tasks: dict[tuple[str, str], list[int]] = {}
        for position, event in enumerate(events):
            if receipts[position] is None:
                tasks.setdefault(event.key, []).append(position)
        outages: list[Unreachable] = []

        async def tell(positions: list[int]) -> None:
            for place, position in enumerate(positions):
                event = events[position]
                try:
                    async with self._gate:
                        receipt = await self._tell(agent, event)
                except Unreachable as error:
                    outages.append(error)
                    receipt = _later(event, str(error), error.retry_after)
                receipts[position] = receipt
                if receipt.answer is Answer.RETRY:
                    for waiting in positions[place + 1 :]:
                        receipts[waiting] = _later(events[waiting], "an earlier event waits", None)
                    return

        async with asyncio.TaskGroup() as group:
            for positions in tasks.values():
                group.create_task(tell(positions))
        return outages[0] if outages and len(outages) == len(tasks) else None

    async def _tell(self, agent: AgentHandle, event: Event) -> Receipt:
        match event.kind:
            case EventKind.START if event.run_no <= 1:
                return _receipt(event, await self._start(agent, event))
            case EventKind.COMPLETE:
                return _receipt(event, await self._complete(event))
            case EventKind.RELEASE:
                return await self._release(event)
        # Single calls carry one start and one complete an attempt; the rest is our own record.
        return Receipt(seq=event.seq, answer=Answer.TAKEN)

    async def _start(self, agent: AgentHandle, event: Event) -> Reply:
        reply = await self._call(event, "start", attempt_id=event.key.attempt_id)
        if reply.code == Code.LEASE_OVER:
            code = await self._leases.renew(agent, event.key)
            if code != Code.OK:
                return reply._replace(code=code)
            reply = await self._call(event, "start", attempt_id=event.key.attempt_id)
        return reply

    async def _complete(self, event: Event) -> Reply:
        limit = self._body_limit
        while True:
            fields = complete_fields(
                event, extended=self._contact.capabilities is not None, limit=limit
            )
            reply = await self._call(event, "complete", **fields)
            if reply.code != Code.TOO_LARGE or limit <= SMALLEST_BODY:
                return reply
            limit //= 4

    async def _release(self, event: Event) -> Receipt:
        path = task_path(event.key, "release")
        reply = await self._contact.call(
            path, attempt_id=event.key.attempt_id, reason=error_of(event.outcome) or "released"
        )
        if reply.code == Code.NO_ROUTE:
            self._log.info(
                "the server takes nothing back; the task's lease will run out",
                task=event.key.task_id,
            )
            return Receipt(seq=event.seq, answer=Answer.TAKEN)
        return _receipt(event, reply)

    async def _call(self, event: Event, verb: str, **fields: Json) -> Reply:
        reply = await self._contact.call(task_path(event.key, verb), **fields)
        if reply.code == Code.NO_ROUTE:  # every server has these: it is a proxy that answers
            raise Unreachable(f"{verb} answered {reply.message}", retry_after=reply.retry_after)
        return reply


def _all(
    events: Sequence[Event], receipts: "Sequence[Receipt | None]", outage: Unreachable | None
) -> list[Receipt]:
    """One each. Raises the outage if it left not one event answered."""
    if outage is not None and all(
        receipt is None or receipt.answer is Answer.RETRY for receipt in receipts
    ):
        raise outage
    retry_after = outage.retry_after if outage else None
    return [
        receipt or _later(event, str(outage), retry_after)
        for event, receipt in zip(events, receipts, strict=True)
    ]


def _receipt(event: Event, reply: Reply) -> Receipt:
    return Receipt(
        seq=event.seq,
        answer=wire.meaning(reply.code).answer,
        code=reply.code,
        message=reply.message,
        retry_after=reply.retry_after,
    )


def _later(event: Event, message: str, retry_after: float | None) -> Receipt:
    return Receipt(
        seq=event.seq,
        answer=Answer.RETRY,
        code=Code.INTERNAL,
        message=message,
        retry_after=retry_after,
    )
