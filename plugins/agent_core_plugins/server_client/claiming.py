"""Asking the server for work, each request numbered, so that a lost answer is told again."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from agent_core import AgentHandle, Claim, Clock, Code, Demand, Json, Lease, Task, Unreachable, wire
from agent_core_plugins.server_client.contact import Contact, first
from agent_core_plugins.server_client.hanging import Answered, Hanging, Question
from agent_core_plugins.server_client.http import Reply
from agent_core_plugins.server_client.leases import LATE, Leases
from agent_core_plugins.server_client.reading import read_tasks

CLAIM_NO = "claim_no"  # fact: the number of the last claim whose tasks were saved
DRAIN_LIMIT = 30.0  # seconds after an outage in which waiting results go before new work
MOST = 200  # tasks of one claim, of a server whose renewals are batched
GATHER = 0.2  # seconds between two claims that only fill up what is had ready: for a second
GATHER_SHORT = 0.04  # likewise, where that will soon be used up
SOON = 0.5  # seconds; other calls with the number of one that brought tasks are answered by then
QUICK = 1.0  # seconds; an answer without anything that came sooner: this server does not wait


class Claimer:
    """One question at a time; its number rises only with the tasks that it brought, saved."""

    def __init__(
        self,
        contact: Contact,
        leases: Leases,
        *,
        source: str,
        batch_size: int,
        poll_interval: float,
        wait: float,
        clock: Clock,
        log: Any,
    ) -> None:
        self._contact = contact
        self._leases = leases
        self._source = source
        self._batch_size = batch_size
        self._poll_interval = poll_interval
        self._longest = wait
        self._clock = clock
        self._log = log
        self._one = asyncio.Lock()
        self._hanging = Hanging(self._post)
        self._stream = ""
        self._asked_at = -GATHER  # boot time of the last claim

    async def claim(self, agent: AgentHandle, demand: Demand) -> Claim:
        """Raises Unreachable. Asks nothing if the agent stops.

        A full agent asks only a server that lets claims wait: that one has commands for it.
        """
        async with self._one:
            if agent.stopping.is_set():
                return Claim(ask_again=self._pause())
            await self._contact.registered(agent)
            if demand.slots < 1 and not self._wait:
                return Claim(ask_again=self._pause())
            if await self._results_wait(agent):
                return Claim(ask_again=1.0)
            await self._leases.revive(agent)
            demand = await self._gathered(agent, demand)
            if agent.stopping.is_set() or (demand.slots < 1 and not self._wait):
                return Claim(ask_again=self._pause())
            self._stream = agent.stream
            number = await self._next_number(agent)
            self._asked_at = self._clock.boottime()
            if self._wait:
                return await self._patiently(agent, demand, number)
            question = self._question(demand, number)
            reply = await self._post(question)
            return await self._whole(agent, number, [Answered(question, reply, newest=True)])

    async def close(self) -> None:
        await self._hanging.close()

    @property
    def takes_back(self) -> bool:
        """Whether tasks that were taken ahead in vain go back: the server has not to be polled."""
        return self._wait > 0

    @property
    def _wait(self) -> int:
        """Seconds that a claim may hang, for its tasks' leases count from when it was sent."""
        if not self._contact.speaks(wire.Word.WAIT):
            return 0
        return int(min(self._longest, self._contact.lease_sec / LATE))

    async def _gathered(self, agent: AgentHandle, demand: Demand) -> Demand:
        """Few claims cost less than many: while no slot is idle there is a moment's time."""
        while demand.again and not agent.stopping.is_set():
            demand = demand.again()
            until = self._asked_at + (GATHER_SHORT if demand.short else GATHER)
            left = until - self._clock.boottime()
            if demand.free.slots or left <= 0:
                break
            news = (demand.changed.next(), demand.hurry.next())
            await first(self._clock.sleep(left), *news, agent.stopping.wait())
        return demand

    async def _patiently(self, agent: AgentHandle, demand: Demand, number: int) -> Claim:
        """Until the server has tasks, or the time is up."""

        def question(demand: Demand) -> Question:
            return self._question(demand, number)

        while True:
            began = self._clock.boottime()
            found = await self._hanging.answers(agent, demand, question)
            claim = await self._whole(agent, number, found)
            if claim.tasks or agent.stopping.is_set():
                return claim
            commanded = [self._contact.heard(each.reply) for each in found]
            if any(each.newest for each in found) and not any(commanded):
                quick = self._clock.boottime() - began < QUICK
                return claim if quick else Claim()

    def _question(self, demand: Demand, number: int) -> Question:
        most = MOST if self._contact.speaks(wire.Word.EVENTS) else self._batch_size
        free = demand.free
        gpus = [{"name": each.name, "memory": each.memory} for each in free.devices]
        told = {
            "slots": free.slots,
            "resources": {"gpus": gpus, "cpus": free.cpus, "memory": free.memory},
            "urgent_at_most": demand.urgent_at_most,
        }
        # A server that lets claims wait has a free slot filled at once; it may have others for the
        # tasks that would only stand by.
        wanted = demand.slots - (demand.standby if self._wait else 0)
        return Question(number, min(wanted, most), told, self._wait)

    async def _post(self, question: Question) -> Reply:
        """Raises Unreachable for every answer that says nothing of tasks."""
        body: dict[str, Json] = {
            "machine_id": self._contact.identity["machine_id"],
            "limit": question.limit,
            "request_id": f"{self._stream}:{question.number}",
        }
        if self._contact.capabilities is not None:
            body["free"] = question.free
        if self._wait:
            body["wait_sec"] = question.wait
        reply = await self._contact.call("tasks/claim", patience=question.wait, **body)
        if reply.code == Code.NOT_AUTHORISED:
            raise Unreachable(f"the server refuses this agent's token: {reply.message}")
        if reply.code != Code.OK:  # no such route is a proxy's word: every server has this one
            raise Unreachable(
                f"claim answered {reply.code}: {reply.message}", retry_after=reply.retry_after
            )
        if not isinstance(_entries(reply), list | None):
            raise Unreachable("claim was answered with tasks that are no list")
        return reply

    async def _whole(self, agent: AgentHandle, number: int, found: list[Answered]) -> Claim:
        """With what other calls of the same number bring: once it is settled, none is heard again.

        A server that has granted something for a number tells each of them the same, at once.
        """
        if any(_entries(each.reply) for each in found):
            found += await self._hanging.rest(number, SOON)
        return await self._brought(agent, number, found)

    async def _brought(self, agent: AgentHandle, number: int, answers: Sequence[Answered]) -> Claim:
        tasks: dict[tuple[str, str], Task] = {}  # calls with the same number bring the same
        given = 0
        full = True
        settled = False  # an answer to an earlier number says nothing of what this one brings
        for each in answers:
            entries = _entries(each.reply) or []
            given += len(entries)
            full = full and len(entries) >= each.question.limit
            settled = settled or (bool(entries) and each.question.number == number)
            if entries and each.reply.sent.age(self._clock) > self._contact.lease_sec / LATE:
                self._leases.overdue()  # the answer dawdled
            read = read_tasks(
                entries,
                source=self._source,
                agent_id=agent.agent_id,
                lease=Lease(until=each.reply.sent.plus(self._contact.lease_sec)),
                clock=self._clock,
                log=self._log,
            )
            tasks |= {(task.id, task.attempt_id): task for task in read}
        if not given:
            return Claim(ask_again=self._pause())
        facts = {CLAIM_NO: str(number)} if settled and not self._hanging.open(number) else {}
        if facts and not tasks:  # nothing to save it with, and the same number brings the same
            await agent.set_fact(CLAIM_NO, str(number))
        go_on = tasks and (full or self._wait)
        return Claim(
            tasks=list(tasks.values()),
            facts=facts,
            ask_again=0.0 if go_on else self._pause(),
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


def _entries(reply: Reply) -> Json:
    return reply.data.get("tasks") if isinstance(reply.data, dict) else None
