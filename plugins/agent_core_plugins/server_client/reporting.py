"""From events to single calls: start, complete, release, and the receipt that each answer is."""

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Any

from agent_core import (
    AgentHandle,
    Answer,
    Code,
    Event,
    EventKind,
    Json,
    Outcome,
    Reason,
    Receipt,
    Unreachable,
    wire,
)
from agent_core_plugins.server_client.contact import Contact
from agent_core_plugins.server_client.http import Reply, encode
from agent_core_plugins.server_client.leases import AT_ONCE, Leases, task_path

ERROR_LIMIT = 4000  # characters
SMALLEST_BODY = 64 * 2**10  # bytes: a server that takes no more than this takes nothing
_USAGE = ("wall_s", "user_s", "system_s", "max_rss_bytes")
_MARKER = re.compile(rb"\n\.\.\.\[truncated, [^\]]{1,40}\]\n")


class Reporter:
    """Tells events to the server. May be repeated: the server knows what it heard before."""

    def __init__(self, contact: Contact, leases: Leases, *, log: Any) -> None:
        self._contact = contact
        self._leases = leases
        self._log = log
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._body_limit = wire.COMPLETE_BODY_LIMIT

    async def report(self, agent: AgentHandle, events: Sequence[Event]) -> list[Receipt]:
        """One receipt an event, by position; tasks side by side, a task's events in order.

        Raises Unreachable if the server answered none of them, or does not register this agent.
        """
        # Before anything is told: an unknown server would be sent plain exit codes alone, and
        # what was refused or cancelled would be on record there as a mere failure.
        await self._contact.registered(agent.max_workers)
        tasks: dict[tuple[str, str], list[int]] = {}
        for position, event in enumerate(events):
            tasks.setdefault(event.key, []).append(position)
        receipts: list[Receipt | None] = [None] * len(events)
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
        if outages and len(outages) == len(tasks):
            raise outages[0]
        return [receipt for receipt in receipts if receipt is not None]

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
            path, attempt_id=event.key.attempt_id, reason=_error(event.outcome) or "released"
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


def complete_fields(event: Event, *, extended: bool, limit: int) -> dict[str, Json]:
    """The body of a complete, cut until its JSON is no longer than `limit` bytes.

    `extended` is for servers that named their capabilities; another one judges by exit_code alone.
    """
    outcome = event.outcome or Outcome(reason=Reason.LOST, error="no outcome is on record")
    fields: dict[str, Json] = {
        "attempt_id": event.key.attempt_id,
        "exit_code": outcome.exit_code if extended else plain_exit_code(outcome),
        "error": _error(outcome),
    }
    if extended:
        fields |= _extended(outcome)
    cap = limit
    while True:
        stdout, dropped_stdout = cut(outcome.stdout, outcome.dropped_stdout, cap)
        stderr, dropped_stderr = cut(outcome.stderr, outcome.dropped_stderr, cap)
        fields |= {"stdout": wire.plain_text(stdout), "stderr": wire.plain_text(stderr)}
        if extended:
            fields["truncated"] = {"stdout": dropped_stdout, "stderr": dropped_stderr}
        if cap == 0 or len(encode(fields)) + 1024 <= limit:  # the agent's id comes on top
            return fields
        cap = min(cap, max(len(stdout), len(stderr))) * 3 // 4 if cap > 256 else 0


def plain_exit_code(outcome: Outcome) -> int:
    """An integer that is 0 for success alone, as a server that looks at nothing else needs it."""
    if outcome.success:
        return 0
    if outcome.reason in {Reason.EXITED, Reason.SIGNAL, Reason.TIMEOUT, Reason.OOM}:
        default = 124 if outcome.reason is Reason.TIMEOUT else -1
        return outcome.exit_code or default
    return -1


def cut(output: bytes, dropped: int | None, cap: int) -> tuple[bytes, int | None]:
    """Head and tail of an output within `cap` bytes, and how many bytes of it are gone in all."""
    if len(output) <= cap:
        return output, dropped
    head = output[: cap // 2]
    tail = output[len(output) - (cap - cap // 2) :]
    middle = output[len(head) : len(output) - len(tail)]
    gone = len(middle)
    if dropped != 0 and (marker := _MARKER.search(middle)):
        gone -= len(marker[0])  # an earlier cut's words were never output
    dropped = None if dropped is None else dropped + gone
    number = "an unknown number of" if dropped is None else dropped
    return head + f"\n...[truncated, {number} bytes dropped]\n".encode() + tail, dropped


def _extended(outcome: Outcome) -> dict[str, Json]:
    usage = outcome.usage
    cancelled = outcome.reason is Reason.CANCELLED
    ended = "completed" if outcome.success else "cancelled" if cancelled else "failed"
    return {
        "status": ended,
        "reason": outcome.reason.value,
        "error_code": int(outcome.error_code),
        "signal": outcome.signal,
        "usage": usage and {field: _finite(getattr(usage, field)) for field in _USAGE},
    }


def _finite(value: float | None) -> float | None:
    """JSON has no word for the others, and a result must not wait for ever because of one."""
    return value if value is not None and math.isfinite(value) else None


def _error(outcome: Outcome | None) -> str:
    text = outcome.error if outcome else ""
    return wire.plain_text(text.encode("utf-8", "surrogatepass"))[:ERROR_LIMIT]


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
