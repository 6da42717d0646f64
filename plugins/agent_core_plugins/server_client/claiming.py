"""Asking the server for work, each request numbered, so that a lost answer is told again."""

import asyncio
import random
from typing import Any

from agent_core import AgentHandle, Claim, Clock, Code, Demand, Lease, Unreachable
from agent_core_plugins.server_client.contact import Contact
from agent_core_plugins.server_client.leases import Leases
from agent_core_plugins.server_client.reading import read_tasks

CLAIM_NO = "claim_no"  # fact: the number of the last claim whose tasks were saved
DRAIN_LIMIT = 30.0  # seconds after an outage in which waiting results go before new work


class Claimer:
    """One claim at a time; its number rises only with the tasks that it brought, saved."""

    def __init__(
        self,
        contact: Contact,
        leases: Leases,
        *,
        source: str,
        batch_size: int,
        poll_interval: float,
        clock: Clock,
        log: Any,
    ) -> None:
        self._contact = contact
        self._leases = leases
        self._source = source
        self._batch_size = batch_size
        self._poll_interval = poll_interval
        self._clock = clock
        self._log = log
        self._one = asyncio.Lock()

    async def claim(self, agent: AgentHandle, demand: Demand) -> Claim:
        """Raises Unreachable. Asks nothing if nothing is wanted or the agent stops."""
        async with self._one:
            if demand.slots < 1 or agent.stopping.is_set():
                return Claim(ask_again=self._pause())
            await self._contact.registered(agent)
            if await self._results_wait(agent):
                return Claim(ask_again=1.0)
            await self._leases.revive(agent)
            return await self._ask(agent, min(demand.slots, self._batch_size))

    async def _ask(self, agent: AgentHandle, limit: int) -> Claim:
        number = await self._next_number(agent)
        reply = await self._contact.call(
            "tasks/claim",
            machine_id=self._contact.identity["machine_id"],
            limit=limit,
            request_id=f"{agent.stream}:{number}",
        )
        if reply.code == Code.NOT_AUTHORISED:
            raise Unreachable(f"the server refuses this agent's token: {reply.message}")
        if reply.code != Code.OK:  # no such route is a proxy's word: every server has this one
            raise Unreachable(
                f"claim answered {reply.code}: {reply.message}", retry_after=reply.retry_after
            )
        entries = reply.data.get("tasks") if isinstance(reply.data, dict) else None
        if not isinstance(entries, list | None):
            raise Unreachable("claim was answered with tasks that are no list")
        if not entries:
            return Claim(ask_again=self._pause())
        tasks = read_tasks(
            entries,
            source=self._source,
            agent_id=agent.agent_id,
            lease=Lease(until=reply.sent.plus(self._contact.lease_sec)),
            clock=self._clock,
            log=self._log,
        )
        if not tasks:  # nothing to save it with, and the same number brings the same again
            await agent.set_fact(CLAIM_NO, str(number))
        full = len(entries) >= limit
        return Claim(
            tasks=tasks,
            facts={CLAIM_NO: str(number)},
            ask_again=0.0 if full and tasks else self._pause(),
        )

    async def _next_number(self, agent: AgentHandle) -> int:
        saved = await agent.get_fact(CLAIM_NO)
        return int(saved) + 1 if saved and saved.isdecimal() else 1

    async def _results_wait(self, agent: AgentHandle) -> bool:
        """Whether results of the time without contact are still to be told, before new work."""
        since = self._contact.back_since
        if since is None:
            return False
        waiting = [each for each in await agent.outbox(limit=8) if each.source == self._source]
        if waiting and since.age(self._clock) < DRAIN_LIMIT:
            return True
        self._contact.back_since = None
        return False

    def _pause(self) -> float:
        return self._poll_interval * random.uniform(0.9, 1.1)
