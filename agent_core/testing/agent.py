"""An agent in memory for the tests of plugins: an AgentHandle that a test fills and looks into."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace

from agent_core.api.wire import Answer, Code
from agent_core.errors import NotAccepted, StoreFull
from agent_core.inventory import Inventory
from agent_core.lifecycle import FINAL, Status
from agent_core.models import (
    Event,
    Key,
    Lease,
    Piece,
    Progress,
    Receipt,
    Stream,
    Task,
)
from agent_core.protocols import Held

Report = Callable[[Sequence[Event]], Awaitable[Sequence[Receipt]]]


class MemoryAgent:
    """What core offers to a plugin, without core: tasks, outbox and facts are plain attributes.

    `reporter` is the report hook under test; `cancelled` and `renewals` tell what was asked.
    """

    def __init__(
        self,
        *,
        agent_id: str = "agent-1",
        machine_id: str = "machine-1",
        max_workers: int = 2,
        stream: str = "stream-1",
        reporter: Report | None = None,
    ) -> None:
        self.agent_id = agent_id
        self.machine_id = machine_id
        self.max_workers = max_workers
        self.labels: dict[str, str] = {}
        self.executors: list[str] = ["subprocess_executor"]
        self.stream = stream
        self.stopping = asyncio.Event()
        self.reporter = reporter
        self.known: dict[Key, Task] = {}
        self.events: list[Event] = []
        self.dead: list[tuple[Event, Receipt]] = []
        self.facts: dict[str, str] = {}
        self.progresses: dict[Key, Progress | Exception] = {}  # an exception is raised
        self.printed: dict[tuple[Key, Stream], bytes] = {}  # all that a running task printed
        self.forgotten: dict[tuple[Key, Stream], int] = {}  # bytes of it that are gone, from 0 on
        self.machine = Inventory()
        self.cancelled: list[tuple[Key, int, str]] = []
        self.renewals: list[tuple[Key, Lease]] = []
        self.full = False  # the disk: what must be saved raises StoreFull
        self.changed = asyncio.Condition()  # notified when a plugin asked for something
        self._grew = asyncio.Event()
        self._seq = 0  # of the newest event: no number is used twice

    # --- what a test does

    def add(self, task: Task, *events: Event) -> Task:
        """The agent has this task, as it stands; its events wait to be reported."""
        self.known[task.key] = task
        for event in events:
            self._seq = max(self._seq + 1, event.seq)
            self.events.append(replace(event, seq=event.seq or self._seq))
            self._grew.set()
        return task

    def save(self, tasks: Sequence[Task], facts: Mapping[str, str]) -> None:
        """What core does with a claim's answer."""
        for task in tasks:
            self.known.setdefault(task.key, task)
        self.facts |= facts

    async def until(self, condition: Callable[[], object]) -> None:
        """Returns when the condition holds; looked at whenever a plugin asked for something."""
        async with self.changed:
            await self.changed.wait_for(condition)

    # --- what a plugin asks

    async def get(self, key: Key) -> Task | None:
        return self.known.get(key)

    async def tasks(
        self, statuses: Collection[Status] = (), *, limit: int = 1000, after: Key | None = None
    ) -> list[Task]:
        found = sorted(self.known.values(), key=lambda task: (task.created_at, task.key))
        if after is not None:
            keys = [task.key for task in found]
            found = found[keys.index(after) + 1 :] if after in keys else []
        return [task for task in found if not statuses or task.status in statuses][:limit]

    async def submit(self, task: Task) -> Task:
        if self.full:
            raise StoreFull("no room on the disk")
        if task.key in self.known:
            raise NotAccepted(f"a task {task.id} was submitted here before", Code.CONFLICT)
        self.known[task.key] = task
        await self._tell()
        return task

    async def cancel(self, key: Key, *, code: int, reason: str) -> bool:
        task = self.known.get(key)
        if task is None or task.status in FINAL:
            return False
        if self.full:
            raise StoreFull("no room on the disk")
        self.cancelled.append((key, code, reason))
        await self._tell()
        return True

    def held(self, source: str) -> list[Held]:
        return [
            Held(
                key=task.key,
                source=task.source,
                status=task.status,
                begun=task.run_no > 0,
                run_no=task.run_no,
                lease=task.lease,
                timeout=task.timeout,
            )
            for task in self.known.values()
            if task.source == source and task.status not in FINAL
        ]

    def renewed(self, key: Key, lease: Lease) -> None:
        self.renewals.append((key, lease))
        if task := self.known.get(key):
            self.known[key] = replace(task, lease=lease)

    async def progress(self, key: Key) -> Progress | None:
        progress = self.progresses.get(key)
        if isinstance(progress, Exception):
            raise progress
        return progress

    async def output(
        self, key: Key, run_no: int, stream: Stream, offset: int, limit: int
    ) -> Piece | None:
        task = self.known.get(key)
        if task is None or task.run_no != run_no or task.status is not Status.RUNNING:
            return None
        printed = self.printed.get((key, stream), b"")
        start = max(offset, self.forgotten.get((key, stream), 0))
        return Piece(start, printed[start : start + limit], len(printed))

    async def outbox(
        self,
        *,
        limit: int,
        skip: Collection[Key] = frozenset(),
        skip_sources: Collection[str] = frozenset(),
    ) -> list[Event]:
        return [
            event
            for event in self.events
            if event.key not in skip and event.source not in skip_sources
        ][:limit]

    async def outbox_grew(self) -> None:
        await self._grew.wait()
        self._grew.clear()

    async def report(self, events: Sequence[Event]) -> list[Receipt]:
        if self.reporter is None:
            raise AssertionError("this test gave its agent no reporter")
        return list(await self.reporter(events))

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        by_seq = {event.seq: event for event in self.events}
        for receipt in receipts:
            event = by_seq.get(receipt.seq)
            if event is None or receipt.answer is Answer.RETRY:
                continue
            self.events.remove(event)
            if receipt.answer is Answer.REFUSED:
                self.dead.append((event, receipt))
        await self._tell()

    async def get_fact(self, name: str) -> str | None:
        return self.facts.get(name)

    async def set_fact(self, name: str, value: str) -> None:
        if self.full:
            raise StoreFull("no room on the disk")
        self.facts[name] = value

    async def inventory(self) -> Inventory:
        return self.machine

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()
