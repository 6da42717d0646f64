"""The part of a store's contract that is about its outbox; `store.StoreContract` has it all."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest_asyncio

from agent_core.api.wire import Answer
from agent_core.lifecycle import EventKind, Status
from agent_core.models import Event, Reason, Receipt, TaskRun
from agent_core.protocols import Store
from agent_core.testing.making import finish, make_event, make_outcome, make_task

OUTBOX_ROOM = 64 * 2**20  # bytes of output that one batch of events may bring at the very most


class OutboxContract:
    """What the syncer relies on."""

    async def open_store(self, directory: Path) -> Store:
        """The store whose memory is in this directory, made or found."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        store = await self.open_store(tmp_path)
        yield store
        await store.close()

    async def test_an_event_brings_the_outcome_it_speaks_of(self, store: Store) -> None:
        task = make_task(status=Status.RUNNING, start_id="s", run_no=1)
        await store.add([task], {})
        first = make_outcome(b"one", reason=Reason.SIGNAL, exit_code=137)
        again = make_event(task, EventKind.RUN, started_at=5.5, next_run_at=8.25, outcome=first)
        run = TaskRun(1, 5.5, first)
        assert await store.save(task, {"status": Status.PENDING}, again, run)
        task = replace(task, status=Status.PENDING)
        start = make_event(task, EventKind.START, run_no=2, started_at=9.5)
        assert await store.save(task, {"status": Status.RUNNING, "run_no": 2}, start)
        task = replace(task, status=Status.RUNNING, run_no=2)
        last = make_outcome(b"two", stderr=b"\xff")
        await finish(store, task, last)
        found = await store.outbox(limit=10)
        assert [replace(event, seq=0) for event in found] == [
            again,
            start,
            make_event(task, EventKind.COMPLETE, outcome=last),
        ]
        assert await store.runs(task.key) == [run]

    async def test_a_task_given_back_tells_why(self, store: Store) -> None:
        task = make_task()
        await store.add([task], {})
        outcome = make_outcome(reason=Reason.RELEASED, exit_code=None, error="given back")
        event = make_event(task, EventKind.RELEASE, outcome=outcome)
        changes: dict[str, object] = {"status": Status.CANCELLED, "outcome": outcome}
        assert await store.save(task, changes, event)
        assert [each.outcome for each in await store.outbox(limit=1)] == [outcome]

    async def test_the_outbox_goes_by_number_and_leaves_out_what_it_is_told(
        self, store: Store
    ) -> None:
        tasks = [make_task(source=f"source-{number % 3}") for number in range(9)]
        await store.add(tasks, {})
        for task in tasks:
            await finish(store, task, make_outcome())
        everything = await store.outbox(limit=100)
        numbers = [event.seq for event in everything]
        assert [event.key for event in everything] == [task.key for task in tasks]
        assert numbers == sorted(set(numbers))
        assert numbers[0] > 0
        assert await store.outbox(limit=2) == everything[:2]
        found = await store.outbox(
            limit=2, skip={tasks[1].key, tasks[4].key}, skip_sources={"source-0"}
        )
        assert found == [everything[2], everything[5]]

    async def test_a_batch_of_events_is_bounded_by_its_output(self, store: Store) -> None:
        output = bytes(2**20)
        tasks = [make_task() for _ in range(80)]
        await store.add(tasks, {})
        for task in tasks:
            await finish(store, task, make_outcome(output))
        found: list[Event] = []
        while batch := await store.outbox(limit=1000):
            assert sum(len(event.outcome.stdout) for event in batch if event.outcome) < OUTBOX_ROOM
            await store.settle([Receipt(seq=event.seq, answer=Answer.TAKEN) for event in batch])
            found += batch
        assert [event.key for event in found] == [task.key for task in tasks]

    async def test_what_is_settled_is_gone_refused_or_still_there(self, store: Store) -> None:
        tasks = [make_task() for _ in range(4)]
        await store.add(tasks, {})
        for task in tasks:
            await finish(store, task, make_outcome())
        events = await store.outbox(limit=10)
        answers = [Answer.TAKEN, Answer.STALE, Answer.REFUSED, Answer.RETRY]
        receipts = [
            Receipt(seq=event.seq, answer=answer, code=30005, message="why: ü")
            for event, answer in zip(events, answers, strict=True)
        ]
        await store.settle([])
        for _ in range(2):  # a repeat changes nothing
            await store.settle(receipts)
            assert await store.outbox(limit=10) == [events[3]]
            assert await store.dead_letters() == [(events[2], receipts[2])]
        assert await store.dead_letters(limit=0) == []

    async def test_an_event_number_is_never_used_twice(self, tmp_path: Path) -> None:
        numbers = []
        for _ in range(3):
            store = await self.open_store(tmp_path)
            task = make_task()
            await store.add([task], {})
            await finish(store, task, make_outcome())
            (event,) = await store.outbox(limit=10)
            numbers.append(event.seq)
            await store.settle([Receipt(seq=event.seq, answer=Answer.TAKEN)])
            await store.close()
        assert numbers == sorted(set(numbers))
