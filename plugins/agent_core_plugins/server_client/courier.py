"""Carries events to the server in batches, and what can wait a moment along with them."""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic_core import to_json

from agent_core import Clock, Code, Json, Unreachable, wire
from agent_core_plugins.server_client.contact import Contact
from agent_core_plugins.server_client.http import Reply

RIDE = 0.04  # seconds that what may ride along waits for a batch
ROOM = 1024  # bytes of a request that are not events
_DIVISIBLE = (Code.TOO_LARGE, Code.INVALID)  # of a whole request: some event of it is to blame
_SICK = (Code.INTERNAL, 500)  # likewise, or the server is


class Told(NamedTuple):
    """What came of each event, by position; None for those that `error` came before."""

    results: "list[Reply | None]"
    error: Unreachable | None = None


class Group:
    """Events that may ride along, and what their owner waits for."""

    def __init__(self, items: Sequence[bytes]) -> None:
        self.items = items
        self.told: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

    def failed(self, why: str) -> None:
        if not self.told.done():
            self.told.set_exception(Unreachable(why))
            self.told.exception()  # its owner may be gone

    def answered(self, results: list[Reply]) -> None:
        if not self.told.done():
            self.told.set_result(results)


class Courier:
    """The `events` call. What a server refuses as a whole is halved until the culprit is alone."""

    def __init__(self, contact: Contact, *, clock: Clock) -> None:
        self._contact = contact
        self._clock = clock
        self._start = b""
        self._waiting: list[Group] = []

    def open(self, stream: str) -> None:
        """The numbers of all events rise within this stream."""
        self._start = to_json({**self._contact.identity, "stream": stream})[:-1] + b',"events":['

    async def tell(self, items: Sequence[bytes]) -> Told:
        """Send them in order, in as many requests as it takes.

        The result of one that was refused with its whole request, alone in it, has data False:
        the server said nothing of the event itself.
        """
        results: list[Reply | None] = [None] * len(items)
        queue = deque(self._batches(items))
        sick: deque[range] = deque()  # over which the server failed
        works = halved = False  # does it take any; was one halved to see whether it does
        try:
            while queue or (sick and works):
                part = queue.popleft() if queue else sick.popleft()
                found = await self._post(items[part.start : part.stop])
                if isinstance(found, list):
                    works = True
                    results[part.start : part.stop] = found
                elif found.code in _SICK and (halved and not works):
                    sick.append(part)
                elif len(part) > 1:
                    halved = halved or found.code in _SICK
                    middle = (part.start + part.stop) // 2
                    queue.extendleft((range(middle, part.stop), range(part.start, middle)))
                elif found.code in _SICK and not works:
                    sick.append(part)
                    halved = True
                else:
                    results[part.start] = found._replace(data=False)
        except Unreachable as error:
            return Told(results, error)
        return Told(results, Unreachable("the server fails over events") if sick else None)

    async def ride(self, items: Sequence[bytes]) -> list[Reply]:
        """Tell them with the next batch that leaves, or in a moment by themselves.

        Raises Unreachable if they got no answer.
        """
        if not items:
            return []
        group = Group(items)
        self._waiting.append(group)
        moment = asyncio.ensure_future(self._clock.sleep(RIDE))
        try:
            either: set[asyncio.Future[Any]] = {moment, group.told}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            moment.cancel()
            alone = group in self._waiting
            if alone:
                self._waiting.remove(group)
        if not alone:
            return await group.told
        told = await self.tell(items)
        if told.error is not None:
            raise told.error
        return [result for result in told.results if result is not None]

    def _batches(self, items: Sequence[bytes]) -> Iterator[range]:
        limits = self._contact.limits
        start = size = 0
        for place, item in enumerate(items):
            size += len(item) + 1
            full = place - start >= limits.events or size > limits.bytes - ROOM
            if full and place > start:
                yield range(start, place)
                start, size = place, len(item) + 1
        if items:
            yield range(start, len(items))

    async def _post(self, items: Sequence[bytes]) -> list[Reply] | Reply:
        """One request, with what rides along; without it once more, if that may be to blame."""
        groups = self._passengers(items)
        if groups:
            everything = [*items, *(item for group in groups for item in group.items)]
            found: list[Reply] | Reply | None = None
            try:
                found = await self._send(everything)
            finally:
                if isinstance(found, list):
                    _share(found[len(items) :], groups)
                else:
                    for group in groups:
                        group.failed("the batch with it was not taken")
            if isinstance(found, list):
                return found[: len(items)]
        return await self._send(items)

    def _passengers(self, items: Sequence[bytes]) -> list[Group]:
        limits = self._contact.limits
        events = limits.events - len(items)
        size = limits.bytes - ROOM - sum(map(len, items)) - len(items) if self._waiting else 0
        taken = []
        for group in self._waiting:
            events -= len(group.items)
            size -= sum(map(len, group.items)) + len(group.items)
            if events < 0 or size < 0:
                break
            taken.append(group)
        del self._waiting[: len(taken)]
        return taken

    async def _send(self, items: Sequence[bytes]) -> list[Reply] | Reply:
        """The events' results, or a refusal of the whole that may be one event's fault."""
        reply = await self._contact.send("events", self._start + b",".join(items) + b"]}")
        if reply.code in _DIVISIBLE or reply.code in _SICK:
            return reply
        if reply.code == Code.NO_ROUTE:
            self._contact.unlearn(wire.Word.EVENTS)
        if reply.code != Code.OK:
            raise Unreachable(
                f"events answered {reply.code}: {reply.message}", retry_after=reply.retry_after
            )
        self._contact.heard(reply)
        results = reply.data.get("results") if isinstance(reply.data, Mapping) else None
        if not isinstance(results, list) or len(results) != len(items):
            raise Unreachable(f"events was answered without {len(items)} results")
        return [_result(each, reply) for each in results]


def _share(results: list[Reply], groups: Sequence[Group]) -> None:
    start = 0
    for group in groups:
        group.answered(results[start : start + len(group.items)])
        start += len(group.items)


def _result(each: Json, reply: Reply) -> Reply:
    code = each.get("code") if isinstance(each, Mapping) else None
    if not isinstance(code, int) or isinstance(code, bool):
        return Reply(Code.INTERNAL, "no result of this event", None, reply.sent)
    message = each.get("message")
    return Reply(code, message if isinstance(message, str) else "", each, reply.sent)
