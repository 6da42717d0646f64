"""Telling the server how far running tasks are, as often as that server wants to hear it."""

import contextlib
from typing import Any

from agent_core import AgentHandle, Clock, Code, Held, Key, Progress, Status, Unreachable, wire
from agent_core_plugins.server_client.contact import Contact
from agent_core_plugins.server_client.courier import Courier
from agent_core_plugins.server_client.forms import passing
from agent_core_plugins.server_client.leases import Leases, task_path

EVERY = 2.0  # seconds, towards a server that names its capabilities
EVERY_PLAIN = 30.0  # seconds, towards one that does not
LONG = 300.0  # seconds: to a plain server only tasks with a longer timeout are told
MESSAGE_LIMIT = 500  # characters


class ProgressLoop:
    """Remembers what was told last, so that only changes are told."""

    def __init__(
        self,
        contact: Contact,
        courier: Courier,
        leases: Leases,
        *,
        source: str,
        clock: Clock,
        log: Any,
    ) -> None:
        self._contact = contact
        self._courier = courier
        self._leases = leases
        self._source = source
        self._clock = clock
        self._log = log
        self._told: dict[Key, Progress] = {}
        self._missing = False  # the server has no such route

    async def keep(self, agent: AgentHandle) -> None:
        await self._contact.known.wait()
        while True:
            plain = self._contact.capabilities is None
            await self._clock.sleep(EVERY_PLAIN if plain else EVERY)
            await self.tell_all(agent)

    async def tell_all(self, agent: AgentHandle) -> None:
        """One round; an outage ends it, there will be newer progress to tell."""
        if self._contact.state != "here":
            self._missing = False
            return
        running = [each for each in agent.held(self._source) if self._worth(each)]
        self._told = {each.key: self._told[each.key] for each in running if each.key in self._told}
        changed: dict[Key, Progress] = {}
        for each in running:
            progress = await self._read(agent, each.key)
            if progress is not None and self._told.get(each.key) != progress:
                changed[each.key] = progress
        with contextlib.suppress(Unreachable):
            if self._contact.speaks(wire.Word.EVENTS):
                await self._tell_together(agent, changed)
                return
            for key, progress in changed.items():
                if not self._missing:
                    await self._tell(agent, key, progress)
                    self._told[key] = progress

    async def _tell_together(self, agent: AgentHandle, changed: dict[Key, Progress]) -> None:
        now = self._clock.wall()
        items = [
            passing("progress", key, now, percent=_percent(progress), message=_words(progress))
            for key, progress in changed.items()
        ]
        replies = await self._courier.ride(items)
        for (key, progress), reply in zip(changed.items(), replies, strict=True):
            self._told[key] = progress
            await self._leases.heed(agent, key, reply)

    async def _read(self, agent: AgentHandle, key: Key) -> Progress | None:
        try:
            return await agent.progress(key)
        except Exception:  # an executor's own trouble must not end the agent
            self._log.exception("the progress of a task cannot be read", task=key.task_id)
            return None

    def _worth(self, held: Held) -> bool:
        if held.status is not Status.RUNNING:
            return False
        return self._contact.capabilities is not None or held.timeout > LONG

    async def _tell(self, agent: AgentHandle, key: Key, progress: Progress) -> None:
        percent = _percent(progress)
        if percent is None and self._contact.capabilities is None:
            percent = 0  # that server has no word for "not known"
        reply = await self._contact.call(
            task_path(key, "progress"),
            attempt_id=key.attempt_id,
            percent=percent,
            message=_words(progress),
        )
        if reply.code == Code.NO_ROUTE:
            self._missing = True
            self._log.info("the server has no route for progress; it is not told")
        else:
            await self._leases.heed(agent, key, reply)


def _percent(progress: Progress) -> int | None:
    return None if progress.percent is None else min(max(progress.percent, 0), 100)


def _words(progress: Progress) -> str:
    text = progress.message.encode("utf-8", "replace").decode()
    return text.replace("\0", wire.REPLACEMENT)[:MESSAGE_LIMIT]
