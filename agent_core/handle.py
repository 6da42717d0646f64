"""What a plugin that lives beside the work may ask of the agent: `AgentHandle`, kept."""

import asyncio
from collections.abc import Collection, Mapping, Sequence

from agent_core.api.wire import Answer, Code
from agent_core.errors import reason_of
from agent_core.hooks import Caller
from agent_core.inventory import Inventory
from agent_core.lifecycle import Status
from agent_core.local import Local
from agent_core.log import get
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
from agent_core.protocols import Held, Store
from agent_core.signals import Signal
from agent_core.survey import Survey
from agent_core.worker import Worker


class Handle:
    """Passes on to store, worker and hooks; decides nothing itself."""

    def __init__(
        self,
        *,
        agent_id: str,
        machine_id: str,
        max_workers: int,
        labels: Mapping[str, str],
        store: Store,
        worker: Worker,
        hooks: Caller,
        survey: Survey,
        local: Local,
        grew: asyncio.Event,
    ) -> None:
        self.agent_id = agent_id
        self.machine_id = machine_id
        self.max_workers = max_workers
        self.labels = labels
        self.executors: Sequence[str] = hooks.executors
        self.stream = store.stream
        self.stopping = asyncio.Event()
        self._store = store
        self._worker = worker
        self._hooks = hooks
        self._survey = survey
        self._local = local
        self._grew = grew
        self.settled = Signal()  # something that was told is done
        self._outstanding: dict[int, Key] = {}  # whose events were read and are not settled
        self._log = get("agent")

    async def get(self, key: Key) -> Task | None:
        return await self._store.get(key)

    async def tasks(
        self, statuses: Collection[Status] = (), *, limit: int = 1000, after: Key | None = None
    ) -> list[Task]:
        return await self._store.tasks(statuses, limit=limit, after=after)

    async def submit(self, task: Task) -> Task:
        return await self._local.submit(task)

    async def cancel(self, key: Key, *, code: int, reason: str) -> bool:
        return await self._worker.cancel(key, code=code, reason=reason)

    def held(self, source: str) -> list[Held]:
        return self._worker.held(source)

    def renewed(self, key: Key, lease: Lease) -> None:
        self._worker.renewed(key, lease)

    async def progress(self, key: Key) -> Progress | None:
        runner = self._worker.runner(key)
        return await runner.reader.now() if runner and runner.reader else None

    async def output(
        self, key: Key, run_no: int, stream: Stream, offset: int, limit: int
    ) -> Piece | None:
        runner = self._worker.runner(key)
        if runner is None or runner.task.run_no != run_no:
            return None
        if runner.task.status not in {Status.RUNNING, Status.SUSPENDED}:
            return None  # what has begun there is the next run, not on record yet
        return await runner.reader.output(stream, offset, limit) if runner.reader else None

    async def outbox(
        self,
        *,
        limit: int,
        skip: Collection[Key] = frozenset(),
        skip_sources: Collection[str] = frozenset(),
    ) -> list[Event]:
        events = await self._store.outbox(limit=limit, skip=skip, skip_sources=skip_sources)
        self._outstanding.update((event.seq, event.key) for event in events)
        return events

    async def outbox_grew(self) -> None:
        await self._grew.wait()
        self._grew.clear()

    async def report(self, events: Sequence[Event]) -> list[Receipt]:
        """One source's outage or absence holds up its own events alone.

        Where none of the sources gave receipts it raises what the first of them raised.
        """
        receipts: dict[int, Receipt] = {}
        errors: list[Exception] = []
        sources = dict.fromkeys(event.source for event in events)
        for source in sources:
            theirs = [event for event in events if event.source == source]
            try:
                answers = await self._hooks.report(source, theirs)
            except Exception as error:
                errors.append(error)
                answers = [_not_now(event, error) for event in theirs]
            receipts.update((receipt.seq, receipt) for receipt in answers)
        if errors and len(errors) == len(sources):
            raise errors[0]
        for why in map(reason_of, errors):
            self._log.warning("events wait for their source", why=why)
        return [receipts[event.seq] for event in events]

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        await self._store.settle(receipts)
        self.settled.send()
        for receipt in receipts:
            key = self._outstanding.get(receipt.seq)
            if key is None or receipt.answer is Answer.RETRY:
                continue
            if receipt.answer is Answer.STALE:
                reason = f"the server took the attempt back: {receipt.message}"
                await self._worker.cancel(key, code=receipt.code, reason=reason)
            # Last: who could not be cancelled on a full disk is, when the receipts come again.
            self._outstanding.pop(receipt.seq, None)

    async def get_fact(self, name: str) -> str | None:
        return await self._store.get_fact(name)

    async def set_fact(self, name: str, value: str) -> None:
        await self._store.set_fact(name, value)

    async def inventory(self) -> Inventory:
        return await self._survey.inventory()


def _not_now(event: Event, error: Exception) -> Receipt:
    return Receipt(
        seq=event.seq,
        answer=Answer.RETRY,
        code=Code.INTERNAL,
        message=reason_of(error),
        retry_after=getattr(error, "retry_after", None),
    )
