"""The outbox out of memory says what the table would say, whatever happens in between."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent_core import Answer, Change, EventKind, Key, Receipt, Status
from agent_core.testing.making import make_event, make_outcome, make_task
from agent_core_plugins.sqlite_store import window
from agent_core_plugins.sqlite_store.opening import open_database
from agent_core_plugins.sqlite_store.store import SqliteTasks, _ranges


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[SqliteTasks]:
    store = SqliteTasks(open_database(tmp_path / "agent.db"))
    yield store
    await store.close()


def of_table(store: SqliteTasks) -> list[tuple[int, str]]:
    rows = store._opened.reading.execute("SELECT seq, task_id FROM outbox ORDER BY seq")
    return [(seq, task_id) for seq, task_id in rows]


def test_numbers_become_ranges_only_where_none_is_missing() -> None:
    assert _ranges([7, 3, 1, 2, 9, 8, 3]) == [(1, 3), (7, 9)]
    assert _ranges([]) == []


async def test_what_was_just_kept_is_told_without_a_read(opened: SqliteTasks) -> None:
    task = make_task(source="server")
    await opened.add([task], {})
    assert await opened.outbox(limit=10) == []  # from now on memory has all of it
    outcome = make_outcome(b"printed", ended_at=5.0)
    changes = {"status": Status.COMPLETED, "outcome": outcome}
    events = [make_event(task, EventKind.START), make_event(task, EventKind.COMPLETE)]
    events[1] = replace(events[1], outcome=outcome)
    assert await opened.save_all([Change(before=task, changes=changes, events=events)]) == [True]
    read: list[object] = []
    opened._opened.reading.set_trace_callback(read.append)
    told = await opened.outbox(limit=10)
    assert [(each.seq, each.kind, each.outcome) for each in told] == [
        (1, EventKind.START, None),
        (2, EventKind.COMPLETE, outcome),
    ]
    assert read == []
    opened._opened.reading.set_trace_callback(None)
    again = SqliteTasks(opened._opened)
    assert await again.outbox(limit=10) == told, "the table says the same"
    again._writer._closing = True


async def test_an_event_whose_writer_was_cancelled_is_told_all_the_same(
    opened: SqliteTasks,
) -> None:
    tasks = [make_task(source="server") for _ in range(3)]
    await opened.add(tasks, {})
    assert await opened.outbox(limit=10) == []
    writes = [
        asyncio.ensure_future(
            opened.save(each, {"status": Status.ASSIGNED}, make_event(each, EventKind.STATE))
        )
        for each in tasks
    ]
    await asyncio.sleep(0)
    writes[1].cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    await opened.set_fact("later", "kept")
    assert [each.key for each in await opened.outbox(limit=10)] == [each.key for each in tasks]


@pytest.mark.parametrize("seed", range(6))
async def test_memory_and_table_agree_through_any_weather(opened: SqliteTasks, seed: int) -> None:
    """A window of five events; what is told is always the table's own first ones."""
    rng = random.Random(seed)
    opened._window = window.Window(most=5)
    tasks = [make_task(source=rng.choice(("a", "b"))) for _ in range(8)]
    await opened.add(tasks, {})
    for _ in range(120):
        act = rng.random()
        if act < 0.45:
            each = rng.choice(tasks)
            told = [make_event(each, EventKind.STATE) for _ in range(rng.randint(1, 3))]
            held = Change(before=each, changes={"run_no": 1}, events=told)
            assert await opened.save_all([held] * rng.randint(1, 2))
        elif act < 0.75:
            first = of_table(opened)[: rng.randint(1, 6)]
            some = [seq for seq, _ in first if rng.random() < 0.8]
            answers = [Receipt(seq=seq, answer=Answer.TAKEN) for seq in some]
            await asyncio.gather(opened.settle(answers), opened.outbox(limit=3))
        skip = {each.key for each in tasks if rng.random() < 0.3}
        sources = {"a"} if rng.random() < 0.2 else set()
        limit = rng.randint(1, 12)
        found = await opened.outbox(limit=limit, skip=skip, skip_sources=sources)
        unwanted = {each.id for each in tasks if each.key in skip or each.source in sources}
        wanted = [row for row in of_table(opened) if row[1] not in unwanted]
        assert [(each.seq, each.key.task_id) for each in found] == wanted[: len(found)]
        assert min(len(wanted), 1) <= len(found) <= limit


async def test_memory_holds_no_more_output_than_one_answer_may_have(opened: SqliteTasks) -> None:
    tasks = [make_task(source="server") for _ in range(8)]
    await opened.add(tasks, {})
    assert await opened.outbox(limit=1) == []
    outcome = make_outcome(bytes(2 * 2**20))
    for each in tasks:
        told = replace(make_event(each, EventKind.COMPLETE), outcome=outcome)
        changes = {"status": Status.COMPLETED, "outcome": outcome}
        await opened.save_all([Change(before=each, changes=changes, events=[told])])
    assert opened._window._bytes <= window.BYTES + 2 * 2**20
    seen: list[Key] = []
    while found := await opened.outbox(limit=10):
        assert sum(len(each.outcome.stdout) for each in found if each.outcome) <= window.BYTES
        seen += [each.key for each in found]
        await opened.settle([Receipt(seq=each.seq, answer=Answer.TAKEN) for each in found])
    assert seen == [each.key for each in tasks]
    assert opened._window._bytes == 0
