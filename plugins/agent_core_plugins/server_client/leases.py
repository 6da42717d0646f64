"""Keeping the attempts that this agent holds: renewing their leases, ending what is lost."""

import asyncio
from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import quote

from agent_core import AgentHandle, Backoff, Clock, Code, Held, Key, Lease, StoreError, Unreachable
from agent_core_plugins.server_client.contact import Contact, first, seconds
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

    def __init__(self, contact: Contact, *, source: str, clock: Clock, log: Any) -> None:
        self._contact = contact
        self._source = source
        self._clock = clock
        self._log = log
        self._told: set[Key] = set()  # attempts that the agent was told to end
        self._asked: dict[Key, asyncio.Task[int]] = {}  # renewals whose end no round has seen
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def keep(self, agent: AgentHandle, interval: float) -> None:
        """Renew everything held, at once and then at every third of a lease or sooner."""
        try:
            await self._keep(agent, interval)
        finally:
            for job in self._asked.values():
                job.cancel()
            await asyncio.gather(*self._asked.values(), return_exceptions=True)

    async def _keep(self, agent: AgentHandle, interval: float) -> None:
        backoff = Backoff()
        returned = self._contact.returns()
        while True:
            returned.clear()
            try:
                await self._contact.registered(agent.max_workers)
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
        jobs = [self._job(agent, each.key) for each in self._wanted(agent, but=self._asked)]
        if jobs:
            await asyncio.wait(jobs, timeout=self._contact.lease_sec / LATE)
        _raise_first(ended + self._ended())

    async def revive(self, agent: AgentHandle) -> None:
        """Renew what is over, or nearly: a claim lets the server grant it anew, even to us.

        Nothing to do while the loop is in time. Raises Unreachable if any of it got no answer.
        """
        jobs = [self._job(agent, each.key) for each in self._wanted(agent) if self._late(each)]
        if jobs:
            await asyncio.wait(jobs)
            _raise_first(jobs)

    def _ended(self) -> "list[asyncio.Task[int]]":
        """Those that had no end when a round last looked, and have one."""
        ended = {key: job for key, job in self._asked.items() if job.done()}
        for key in ended:
            del self._asked[key]
        return list(ended.values())

    def _wanted(self, agent: AgentHandle, but: Collection[Key] = ()) -> list[Held]:
        held = agent.held(self._source)
        self._told &= {each.key for each in held}
        skip = self._told.union(but)
        return [each for each in held if each.key not in skip and self._renewable(each)]

    def _late(self, held: Held) -> bool:
        if held.lease is None:
            return False
        return held.lease.until.age(self._clock) > -self._contact.lease_sec / LATE

    def _job(self, agent: AgentHandle, key: Key) -> "asyncio.Task[int]":
        """The renewal of this attempt that is under way, or a new one."""

        async def renew() -> int:
            async with self._gate:
                return await self.renew(agent, key)

        job = self._asked.get(key)
        if job is None or job.done():
            job = self._asked[key] = asyncio.create_task(renew(), name=f"renew {key.task_id}")
            job.add_done_callback(_seen)
        return job

    async def renew(self, agent: AgentHandle, key: Key) -> int:
        """Renew one attempt and act on the answer; returns its code. Raises Unreachable."""
        reply = await self._contact.call(
            task_path(key, "lease/renew"),
            attempt_id=key.attempt_id,
            extend_sec=int(self._contact.lease_sec),
        )
        if reply.code == Code.OK:
            data = reply.data if isinstance(reply.data, dict) else {}
            duration = seconds(data.get("lease_sec"), self._contact.lease_sec)
            # From the moment of sending: the server's clock may differ, its answer may dawdle.
            agent.renewed(key, Lease(until=reply.sent.plus(duration)))
            return reply.code
        await self.heed(agent, key, reply)
        if reply.code == Code.NO_ROUTE:
            raise Unreachable(f"renew answered {reply.message}")
        return reply.code

    async def heed(self, agent: AgentHandle, key: Key, reply: Reply) -> None:
        """End a run whose attempt the server does not grant any more."""
        try:
            words = _WORDS[Code(reply.code)]
        except (KeyError, ValueError):
            return
        if key not in self._told:
            self._told.add(key)
            self._log.warning("stopping an attempt", task=key.task_id, reason=words)
            try:
                await agent.cancel(key, code=reply.code, reason=words)
            except StoreError as error:  # no room to note it now: the next answer says it again
                self._told.discard(key)
                self._log.error("an end cannot be saved now", task=key.task_id, reason=str(error))

    def _renewable(self, held: Held) -> bool:
        # A server without our extensions refuses to renew what it has not seen begin.
        if held.begun or self._contact.capabilities is not None:
            return True
        return held.lease is not None and held.lease.over(self._clock)  # it begins no other way


def _raise_first(jobs: Iterable["asyncio.Task[int]"]) -> None:
    for job in jobs:
        if error := _seen(job):
            raise error


def _seen(job: "asyncio.Task[int]") -> BaseException | None:
    """Its error. Looked at in any case, so that none is called forgotten by asyncio."""
    return None if job.cancelled() else job.exception()
