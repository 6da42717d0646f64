"""The contract of a store, as tests: subclass StoreContract and say how yours is opened.

    class TestMine(StoreContract):
        async def open_store(self, directory: Path) -> Store:
            return await MyStore(MyStore.Settings(path=str(directory / "mine")), context).store()

The same directory again is the same memory again, after a `close`.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agent_core.api.wire import Answer
from agent_core.clock import Instant
from agent_core.errors import StoreError
from agent_core.lifecycle import EventKind, Status
from agent_core.models import Event, Key, Lease, Outcome, Reason, Receipt, Task, TaskRun, Usage
from agent_core.protocols import Store

OUTBOX_ROOM = 64 * 2**20  # bytes of output that one batch of events may bring at the very most
_numbers = itertools.count(1)


def make_task(**fields: Any) -> Task:
    """A task like no other; `fields` as in Task."""
    filled: dict[str, Any] = {
        "id": f"task-{next(_numbers):06}",
        "command": "true",
        "attempt_id": "attempt-1",
        "source": "some_source",
        "created_at": 1_700_000_000.0,
        **fields,
    }
    return Task(**filled)


def make_event(task: Task, kind: EventKind, **fields: Any) -> Event:
    """What is told of this task; `fields` as in Event."""
    filled: dict[str, Any] = {
        "kind": kind,
        "key": task.key,
        "source": task.source,
        "run_no": task.run_no,
        "at": 1_700_000_100.25,
        **fields,
    }
    return Event(**filled)


def make_outcome(output: bytes = b"", **fields: Any) -> Outcome:
    """A success that printed something; `fields` as in Outcome."""
    return Outcome(**{"reason": Reason.EXITED, "exit_code": 0, "stdout": output, **fields})


async def finish(store: Store, task: Task, outcome: Outcome) -> Task:
    """Bring a stored task to its end, with the event that tells it."""
    changes: dict[str, object] = {"status": Status.COMPLETED, "outcome": outcome}
    event = make_event(task, EventKind.COMPLETE, outcome=outcome)
    assert await store.save(task, changes, event)
    return replace(task, status=Status.COMPLETED, outcome=outcome)


class StoreContract:
    """What core and syncer rely on."""

    async def open_store(self, directory: Path) -> Store:
        """The store whose memory is in this directory, made or found."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        store = await self.open_store(tmp_path)
        yield store
        await store.close()

    # --- tasks

    async def test_every_field_of_a_task_comes_back_as_it_was(self, store: Store) -> None:
        moment = Instant(wall=1_700_000_000.125, boottime=77.5, boot_id="boot-1")
        task = make_task(
            name="naïve 名 \x00 name",
            type="python",
            args=("a", "", "ü\n", "--x=1"),
            exec=True,
            workdir="/tmp/ü",  # noqa: S108
            env={"EMPTY": "", "ü": "=\x01"},
            timeout=0.5,
            priority=1,
            max_retries=3,
            retry_delay=2.5,
            unreadable="no command",
            extra={"customer_id": 2**60, "nested": [None, True, {"a": 1.5}], "zero": 0},
            status=Status.SUSPENDED,
            lease=Lease(until=moment),
            due_at=1_800_000_000.0625,
            retry_count=2,
            run_no=3,
            start_id="start-1",
            assigned_at=moment,
            started_at=moment,
            executor="some_executor",
            handle={"pid": 7, "deep": {"list": [1]}},
            outcome=make_outcome(
                bytes(range(256)),
                stderr=b"\xff\x00",
                signal="SIGKILL",
                error_code=30011,
                error="ended: ü",
                dropped_stdout=None,
                dropped_stderr=2**40,
                usage=Usage(wall_s=1.5, max_rss_bytes=2**33),
                ended_at=1_700_000_050.5,
            ),
        )
        plain = make_task()
        await store.add([task, plain], {})
        assert await store.get(task.key) == task
        assert await store.get(plain.key) == plain
        assert await store.get(Key("unknown", "")) is None

    async def test_a_key_that_is_known_is_left_as_it_is(self, store: Store) -> None:
        task = make_task(command="first")
        assert await store.add([task], {}) == [task]
        assert await store.save(task, {"status": Status.ASSIGNED, "start_id": "s"})
        fresh = make_task()
        assert await store.add([replace(task, command="second"), fresh, fresh], {}) == [fresh]
        kept = await store.get(task.key)
        assert kept == replace(task, status=Status.ASSIGNED, start_id="s")

    async def test_another_attempt_is_another_task(self, store: Store) -> None:
        task = make_task()
        again = replace(task, attempt_id="attempt-2")
        await store.add([task], {})
        assert await store.add([again], {}) == [again]
        assert await store.save(task, {"status": Status.CANCELLED})
        assert await store.get(again.key) == again

    async def test_facts_are_kept_with_the_tasks_even_if_none_is_new(self, store: Store) -> None:
        task = make_task()
        await store.add([task], {"request": "1", "other": ""})
        await store.add([task], {"request": "2"})
        await store.set_fact("set", "ü")
        found = [await store.get_fact(name) for name in ("request", "other", "set", "unknown")]
        assert found == ["2", "", "ü", None]

    async def test_a_move_changes_what_it_names_and_nothing_else(self, store: Store) -> None:
        task = make_task(
            env={"A": "1"}, lease=Lease(until=Instant(wall=1, boottime=2, boot_id="b"))
        )
        await store.add([task], {})
        moment = Instant(wall=5.5, boottime=6.5, boot_id="c")
        changes = {"status": Status.ASSIGNED, "start_id": "s", "assigned_at": moment}
        assert await store.save(task, changes)
        task = replace(task, status=Status.ASSIGNED, start_id="s", assigned_at=moment)
        assert await store.get(task.key) == task
        changes = {"status": Status.PENDING, "lease": None, "handle": {"pid": 1}, "due_at": 9.0}
        assert await store.save(task, changes)
        task = replace(task, status=Status.PENDING, lease=None, handle={"pid": 1}, due_at=9.0)
        assert await store.get(task.key) == task

    @pytest.mark.parametrize(
        "believed", [{"status": Status.RUNNING}, {"start_id": "another"}, {"id": "unknown"}]
    )
    async def test_who_believes_something_else_of_a_task_changes_nothing(
        self, store: Store, believed: dict[str, Any]
    ) -> None:
        task = make_task(status=Status.ASSIGNED, start_id="mine", run_no=1)
        await store.add([task], {})
        before = replace(task, **believed)
        event = make_event(task, EventKind.RUN)
        run = TaskRun(1, 1.0, make_outcome())
        assert not await store.save(before, {"status": Status.PENDING}, event, run)
        assert await store.get(task.key) == task
        assert await store.outbox(limit=10) == []
        assert await store.runs(task.key) == []

    async def test_of_fifty_who_move_a_task_at_once_one_wins(self, store: Store) -> None:
        task = make_task()
        await store.add([task], {})
        event = make_event(task, EventKind.STATE)
        moves = (
            store.save(task, {"status": Status.ASSIGNED, "start_id": f"s{number}"}, event)
            for number in range(50)
        )
        won = await asyncio.gather(*moves)
        assert sum(won) == 1
        kept = await store.get(task.key)
        assert kept is not None
        assert kept.start_id == f"s{won.index(True)}"
        assert len(await store.outbox(limit=10)) == 1

    # --- lists

    async def test_tasks_are_listed_by_status_oldest_first_without_output(
        self, store: Store
    ) -> None:
        outcome = make_outcome(b"printed", stderr=b"too")
        wanted = [
            make_task(id="b", created_at=1.0, status=Status.RUNNING, outcome=outcome),
            make_task(id="a", created_at=2.0, status=Status.PENDING),
            make_task(id="c", created_at=2.0, status=Status.RUNNING),
            make_task(id="c", created_at=2.0, attempt_id="later", status=Status.PENDING),
        ]
        ended = make_task(id="d", created_at=0.0, status=Status.FAILED)
        await store.add([wanted[2], wanted[3], ended, wanted[1], wanted[0]], {})
        wanted[0] = replace(wanted[0], outcome=replace(outcome, stdout=b"", stderr=b""))
        live = [Status.PENDING, Status.RUNNING]
        assert await store.tasks(live) == wanted
        assert await store.tasks(live, limit=3) == wanted[:3]
        assert await store.tasks(live, limit=2, after=wanted[0].key) == wanted[1:3]
        assert await store.tasks(live, after=wanted[3].key) == []
        assert await store.tasks() == [ended, *wanted]
        assert await store.tasks([Status.CANCELLED]) == []

    async def test_pages_of_a_list_miss_nothing_and_repeat_nothing(self, store: Store) -> None:
        given = [make_task(created_at=float(number % 7)) for number in range(100)]
        await store.add(given, {})
        found: list[Task] = []
        while page := await store.tasks(limit=9, after=found[-1].key if found else None):
            found += page
        assert found == sorted(given, key=lambda task: (task.created_at, task.key))

    async def test_what_is_due_comes_most_urgent_first(self, store: Store) -> None:
        first = make_task(priority=1, created_at=99.0)
        second = make_task(priority=3, created_at=10.0)
        third = make_task(priority=3, created_at=20.0, due_at=50.0)
        later = make_task(priority=1, due_at=50.5)
        much_later = make_task(priority=1, due_at=900.0)
        running = make_task(priority=1, status=Status.RUNNING, due_at=60.0)
        await store.add([third, much_later, running, second, later, first], {})
        assert await store.due(50.0, limit=10) == [first, second, third]
        assert await store.due(50.0, limit=1, skip={first.key}) == [second]
        assert await store.due(50.0, limit=0) == []
        assert await store.next_due(50.0) == 50.5
        assert await store.next_due(50.5) == 900.0
        assert await store.next_due(900.0) is None

    # --- events

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

    # --- the memory itself

    async def test_a_stream_is_this_very_memory(self, tmp_path: Path) -> None:
        streams = []
        for name in ("one", "one", "two"):
            (tmp_path / name).mkdir(exist_ok=True)
            store = await self.open_store(tmp_path / name)
            streams.append(store.stream)
            await store.close()
        assert streams[0] == streams[1] != streams[2]

    async def test_a_close_keeps_what_was_asked_before_it(self, tmp_path: Path) -> None:
        store = await self.open_store(tmp_path)
        tasks = [make_task() for _ in range(300)]
        asked = [asyncio.ensure_future(store.add([task], {})) for task in tasks]
        await asyncio.sleep(0)
        await asyncio.gather(store.close(), store.close())
        assert await asyncio.gather(*asked) == [[task] for task in tasks]
        store = await self.open_store(tmp_path)
        assert len(await store.tasks()) == 300
        await store.close()

    async def test_after_the_close_everything_is_refused(self, tmp_path: Path) -> None:
        store = await self.open_store(tmp_path)
        await store.close()
        await store.close()
        task = make_task()
        for refused in (store.add([task], {}), store.get(task.key), store.outbox(limit=1)):
            with pytest.raises(StoreError):
                await refused

    async def test_a_caller_that_gives_up_disturbs_nobody(self, store: Store) -> None:
        tasks = [make_task() for _ in range(200)]
        asked = [asyncio.ensure_future(store.add([task], {})) for task in tasks]
        await asyncio.sleep(0)
        for each in asked[::2]:
            each.cancel()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert results[1::2] == [[task] for task in tasks[1::2]]
        assert all(isinstance(each, asyncio.CancelledError) for each in results[::2])
        await store.set_fact("still", "alive")
        kept = {task.key for task in await store.tasks()}
        assert kept >= {task.key for task in tasks[1::2]}
