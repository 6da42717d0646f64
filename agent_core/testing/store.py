"""The contract of a store, as tests: subclass StoreContract and say how yours is opened.

    class TestMine(StoreContract):
        async def open_store(self, directory: Path) -> Store:
            return await MyStore(MyStore.Settings(path=str(directory / "mine")), context).store()

The same directory again is the same memory again, after a `close`.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent_core.clock import Instant
from agent_core.errors import StoreError
from agent_core.lifecycle import EventKind, Status
from agent_core.models import Change, Key, Lease, Task, TaskRun, Usage
from agent_core.protocols import Store
from agent_core.testing.making import finish, make_event, make_outcome, make_task
from agent_core.testing.outbox import OutboxContract

__all__ = ["StoreContract", "finish", "make_event", "make_outcome", "make_task"]


class StoreContract(OutboxContract):
    """What core and syncer rely on."""

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
            lease=Lease(until=moment, stop_after=7.5),
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

    async def test_of_changes_kept_together_each_has_its_own_answer(self, store: Store) -> None:
        first, second, third = make_task(), make_task(), make_task()
        await store.add([first, second, third], {})
        begun = {"status": Status.ASSIGNED, "start_id": "s"}
        after = replace(first, status=Status.ASSIGNED, start_id="s")
        changes = [
            Change(before=first, changes=begun, events=[make_event(first, EventKind.STATE)]),
            Change(
                before=replace(second, status=Status.RUNNING),
                changes={"status": Status.PENDING},
                events=[make_event(second, EventKind.STATE)],
                ended_run=TaskRun(1, 1.0, make_outcome()),
            ),
            Change(
                before=after,
                changes={"status": Status.RUNNING, "run_no": 1},
                events=[make_event(first, EventKind.START), make_event(first, EventKind.STATE)],
            ),
            Change(before=third, changes={"due_at": 7.0}),
        ]
        assert await store.save_all(changes) == [True, False, True, True]
        assert await store.get(first.key) == replace(after, status=Status.RUNNING, run_no=1)
        assert await store.get(second.key) == second
        assert await store.get(third.key) == replace(third, due_at=7.0)
        told = [(event.key, event.kind) for event in await store.outbox(limit=10)]
        kinds = (EventKind.STATE, EventKind.START, EventKind.STATE)
        assert told == [(first.key, kind) for kind in kinds]
        assert await store.runs(second.key) == []

    async def test_of_changes_with_one_that_cannot_be_kept_none_is(self, store: Store) -> None:
        first, second = make_task(), make_task()
        await store.add([first, second], {})
        changes = [
            Change(before=first, changes={"status": Status.ASSIGNED}),
            Change(before=second, changes={"start_id": "\ud800"}),
        ]
        with pytest.raises(StoreError):
            await store.save_all(changes)
        assert [await store.get(each.key) for each in (first, second)] == [first, second]
        assert await store.save_all([]) == []

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
