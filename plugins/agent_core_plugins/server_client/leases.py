"""Keeping the attempts that this agent holds: renewing their leases, ending what is lost."""

import asyncio
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from urllib.parse import quote

from agent_core import (
    AgentHandle,
    Backoff,
    Clock,
    Code,
    Held,
    Key,
    Lease,
    StoreError,
    Unreachable,
    wire,
)
from agent_core_plugins.server_client.contact import Contact, first, seconds
from agent_core_plugins.server_client.courier import Courier
from agent_core_plugins.server_client.forms import passing
from agent_core_plugins.server_client.http import Reply

AT_ONCE = 8  # calls of one kind in flight
LATE = 3  # a lease of which less than one such part is left should have been renewed
_WORDS = {
    Code.ATTEMPT_LOST: "attempt lost: the server granted this task anew",
    Code.NO_SUCH_TASK: "attempt lost: the server knows no such task any more",
    Code.TASK_FINAL: "cancelled on the server",
}


def task_path(key: Key, verb: str) -> str:
    return f"tasks/{quote(key.task_id, safe='')}/{verb}"


class Leases:
    """The renew loop, and what an answer about an attempt means for its run."""

    def __init__(
        self, contact: Contact, courier: Courier, *, source: str, clock: Clock, log: Any
    ) -> None:
        self._contact = contact
        self._courier = courier
        self._source = source
        self._clock = clock
        self._log = log
        self._told: set[Key] = set()  # attempts that the agent was told to end
        self._asked: dict[Key, asyncio.Task[None]] = {}  # renewals whose end no round has seen
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._renewed_at = -math.inf  # boot time; everything then held was renewed since

    async def keep(self, agent: AgentHandle, interval: float) -> None:
        """Renew everything held, at once and then at every third of a lease or sooner."""
        try:
            await self._keep(agent, interval)
        finally:
            for job in set(self._asked.values()):
                job.cancel()
            await asyncio.gather(*self._asked.values(), return_exceptions=True)

    async def _keep(self, agent: AgentHandle, interval: float) -> None:
        backoff = Backoff()
        returned = self._contact.returns()
        while True:
            returned.clear()
            try:
                await self._contact.registered(agent)
                await self.renew_all(agent)
                backoff.reset()
                delay = min(interval, self._contact.lease_sec / LATE)
            except Unreachable as error:
                delay = backoff.next(error.retry_after)
            await first(self._clock.sleep(delay), returned.wait())

    async def renew_all(self, agent: AgentHandle) -> None:
        """One round. Raises Unreachable if any of it got no answer.

        A call that hangs is left to itself after a while, or the other leases would run out.
        """
        ended = self._ended()
        began = self._clock.boottime()
        jobs = self._jobs(agent, [each.key for each in self._wanted(agent, but=self._asked)])
        if jobs:
            await asyncio.wait(jobs, timeout=self._contact.lease_sec / LATE)
        _raise_first(ended | self._ended())
        if not self._asked:
            self._renewed_at = began

    def overdue(self) -> None:
        """Something may be held whose lease is nearly over, whatever the last round did."""
        self._renewed_at = -math.inf

    async def revive(self, agent: AgentHandle) -> None:
        """Renew what is over, or nearly: a claim lets the server grant it anew, even to us.

        Nothing to do while the loop is in time. Raises Unreachable if any of it got no answer.
        """
        if self._clock.boottime() - self._renewed_at < self._contact.lease_sec / LATE:
            return  # what came since then has more left than that: see overdue
        late = [each.key for each in self._wanted(agent) if self._late(each)]
        if jobs := self._jobs(agent, late):
            await asyncio.wait(jobs)
            _raise_first(jobs)

    def _ended(self) -> "set[asyncio.Task[None]]":
        """Those that had no end when a round last looked, and have one."""
        ended = {key: job for key, job in self._asked.items() if job.done()}
        for key in ended:
            del self._asked[key]
        return set(ended.values())

    def _wanted(self, agent: AgentHandle, but: Collection[Key] = ()) -> list[Held]:
        held = agent.held(self._source)
        self._told &= {each.key for each in held}
        skip = self._told.union(but)
        return [each for each in held if each.key not in skip and self._renewable(each)]

    def _late(self, held: Held) -> bool:
        if held.lease is None:
            return False
        return held.lease.until.age(self._clock) > -self._contact.lease_sec / LATE

    def _jobs(self, agent: AgentHandle, keys: Sequence[Key]) -> "set[asyncio.Task[None]]":
        """The renewals of these attempts: those under way, and new ones for the rest."""
        batched = self._contact.speaks(wire.Word.EVENTS)
        size = self._contact.limits.events if batched else 1
        new = [key for key in keys if key not in self._asked or self._asked[key].done()]
        for start in range(0, len(new), size):
            some = new[start : start + size]
            work = self._renew_some(agent, some) if batched else self._renew_one(agent, some[0])
            job = asyncio.create_task(work, name=f"renew {some[0].task_id}")
            job.add_done_callback(_seen)
            self._asked.update(dict.fromkeys(some, job))
        return {self._asked[key] for key in keys}

    async def _renew_one(self, agent: AgentHandle, key: Key) -> None:
        async with self._gate:
            await self.renew(agent, key)

    async def _renew_some(self, agent: AgentHandle, keys: Sequence[Key]) -> None:
        now, asked = self._clock.wall(), int(self._contact.lease_sec)
        items = [passing("renew", key, now, extend_sec=asked) for key in keys]
        async with self._gate:
            replies = await self._courier.ride(items)
        for key, reply in zip(keys, replies, strict=True):
            await self._heard(agent, key, reply)

    async def renew(self, agent: AgentHandle, key: Key) -> int:
        """Renew one attempt by its own call; returns the answer's code. Raises Unreachable."""
        reply = await self._contact.call(
            task_path(key, "lease/renew"),
            attempt_id=key.attempt_id,
            extend_sec=int(self._contact.lease_sec),
        )
        await self._heard(agent, key, reply)
        if reply.code == Code.NO_ROUTE:
            raise Unreachable(f"renew answered {reply.message}")
        return reply.code

    async def _heard(self, agent: AgentHandle, key: Key, reply: Reply) -> None:
        if reply.code != Code.OK:
            await self.heed(agent, key, reply)
            return
        data = reply.data if isinstance(reply.data, dict) else {}
        duration = seconds(data.get("lease_sec"), self._contact.lease_sec)
        # From the moment of sending: the server's clock may differ, its answer may dawdle.
        agent.renewed(key, Lease(until=reply.sent.plus(duration)))

    async def heed(self, agent: AgentHandle, key: Key, reply: Reply) -> None:
        """End a run whose attempt the server does not grant any more."""
        try:
            words = _WORDS[Code(reply.code)]
        except (KeyError, ValueError):
            return
        if key not in self._told:
            self._told.add(key)
            try:
                # False: it has ended by itself, which the server may know already.
                if await agent.cancel(key, code=reply.code, reason=words):
                    self._log.warning("stopping an attempt", task=key.task_id, reason=words)
            except StoreError as error:  # no room to note it now: the next answer says it again
                self._told.discard(key)
                self._log.error("an end cannot be saved now", task=key.task_id, reason=str(error))

    def _renewable(self, held: Held) -> bool:
        # A server without our extensions refuses to renew what it has not seen begin.
        if held.begun or self._contact.capabilities is not None:
            return True
        return held.lease is not None and held.lease.over(self._clock)  # it begins no other way


def _raise_first(jobs: Iterable["asyncio.Task[None]"]) -> None:
    for job in jobs:
        if error := _seen(job):
            raise error


def _seen(job: "asyncio.Task[None]") -> BaseException | None:
    """Its error. Looked at in any case, so that none is called forgotten by asyncio."""
    return None if job.cancelled() else job.exception()
