"""The built-in store keeps the public contract, and what the contract does not know."""

import asyncio
import os
import sqlite3
from dataclasses import fields
from pathlib import Path

import pytest
import structlog

from agent_core import Answer, PluginContext, Receipt, Status, Store, StoreError, Task
from agent_core.testing.clock import TurnedClock
from agent_core.testing.store import StoreContract, finish, make_outcome, make_task
from agent_core_plugins.sqlite_store import SqliteStore
from agent_core_plugins.sqlite_store import statements as sql
from agent_core_plugins.sqlite_store.opening import open_database
from agent_core_plugins.sqlite_store.rows import MOVING, task_row
from agent_core_plugins.sqlite_store.store import LIST_LIMIT, SqliteTasks


def context_in(directory: Path) -> PluginContext:
    return PluginContext(
        agent_id="agent-1",
        machine_id="machine-1",
        state_dir=directory,
        runtime_dir=directory,
        max_workers=2,
        clock=TurnedClock(),
        log=structlog.get_logger("sqlite_store"),
    )


class TestSqliteStore(StoreContract):
    async def open_store(self, directory: Path) -> Store:
        return await SqliteStore(SqliteStore.Settings(), context_in(directory)).store()


@pytest.fixture
async def store(tmp_path: Path):
    store = SqliteTasks(open_database(tmp_path / "agent.db"))
    yield store
    await store.close()


async def test_the_database_is_in_the_state_directory_unless_it_is_named(tmp_path, monkeypatch):
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(elsewhere))
    for named, found in {
        "": state / "agent.db",
        str(elsewhere / "a.db"): elsewhere / "a.db",
        "relative.db": elsewhere / "relative.db",
        "~/home.db": elsewhere / "home.db",
    }.items():
        settings = SqliteStore.Settings(path=named)
        opened = await SqliteStore(settings, context_in(state)).store()
        await opened.close()
        assert found.exists()


def test_rows_and_statements_speak_of_the_same_columns():
    assert sql.ADD_TASK.names == sql.TASK
    assert len(task_row(make_task())) == len(sql.TASK)
    assert sql.ADD_RUN.names == tuple(column.name for column in sql.RUNS.columns)
    assert sql.TASK[-2:] == sql.OUTCOME[-2:] == sql.OUTPUT
    assert sql.ADD_EVENT.names == tuple(name for name in sql.EVENT if name != "seq")
    assert sql.SET_FACT.names == ("name", "value")
    assert sql.BURY.names == ("code", "message", "of_seq")
    names = [field.name for field in fields(Task) if field.init]
    assert set(names[names.index("status") :]) == MOVING.keys()


async def test_the_file_is_for_its_owner_alone(tmp_path):
    old = os.umask(0o022)
    try:
        store = SqliteTasks(open_database(tmp_path / "agent.db"))
        await store.add([make_task()], {})
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(old)
    await store.close()
    names = {"agent.db", "agent.db.lock", "agent.db-shm", "agent.db-wal"}
    assert modes == dict.fromkeys(names, 0o600)


async def test_a_commit_is_synced(store):
    assert store._opened.writing.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._opened.writing.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


async def test_an_update_names_only_the_columns_of_its_move():
    text = sql.move(("status", "start_id")).text
    assert text.partition(" WHERE ")[0].replace("\n", " ").strip() == (
        "UPDATE tasks SET status=?, start_id=?"
    )


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (sql.DUE, "COVERING INDEX tasks_by_turn"),
        (sql.NEXT_DUE, "COVERING INDEX tasks_by_due_time"),
        (sql.listed(frozenset(Status), True), "COVERING INDEX tasks_by_status"),
        (sql.listed(frozenset({Status.PENDING}), False), "COVERING INDEX tasks_by_status"),
    ],
)
async def test_a_hot_read_walks_along_its_index(store, statement, index):
    values = ["1"] * len(statement.names)
    plan = store._opened.reading.execute(f"EXPLAIN QUERY PLAN {statement.text}", values).fetchall()
    steps = [step[3] for step in plan]
    assert any(index in step for step in steps), steps
    assert not any(step.startswith("SCAN tasks") and "INDEX" not in step for step in steps), steps


async def test_due_tasks_are_not_sorted_to_find_the_first(store):
    plan = store._opened.reading.execute(f"EXPLAIN QUERY PLAN {sql.DUE.text}", (1,)).fetchall()
    assert not any("TEMP B-TREE" in step[3] for step in plan), plan


async def test_a_field_that_no_move_changes_is_refused(store):
    task = make_task()
    await store.add([task], {})
    with pytest.raises(StoreError, match="cannot change command, env of a task"):
        await store.save(task, {"status": Status.ASSIGNED, "env": {}, "command": "x"})
    assert await store.get(task.key) == task


async def test_what_sqlite_cannot_hold_fails_alone_and_says_why(store):
    good = [make_task() for _ in range(20)]
    bad = [make_task(command="\udcff"), make_task(priority=2**63), make_task(timeout=float("nan"))]
    asked = [store.add([task], {}) for task in [*good[:10], *bad, *good[10:]]]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert results[:10] + results[13:] == [[task] for task in good]
    assert all(isinstance(error, StoreError) for error in results[10:13])
    assert "surrogates" in str(results[10])
    assert len(await store.tasks()) == 20


async def test_words_of_an_outcome_are_kept_whatever_they_are_made_of(store):
    task = make_task()
    await store.add([task], {})
    outcome = make_outcome(error="no such file: \udcff.txt")
    assert await store.save(task, {"status": Status.FAILED, "outcome": outcome})
    kept = await store.get(task.key)
    assert kept.outcome.error == "no such file: ?.txt"


async def test_a_list_is_bounded_whatever_is_asked_for(store):
    await store.add([make_task() for _ in range(LIST_LIMIT + 1)], {})
    assert len(await store.tasks(limit=10**9)) == LIST_LIMIT
    assert len(await store.due(1e12, limit=10**9)) == LIST_LIMIT


async def test_dead_letters_are_listed_without_output(store):
    task = make_task()
    await store.add([task], {})
    await finish(store, task, make_outcome(b"printed", stderr=b"too"))
    (event,) = await store.outbox(limit=1)
    await store.settle([Receipt(seq=event.seq, answer=Answer.REFUSED, code=1, message="no")])
    ((kept, _),) = await store.dead_letters()
    assert kept.outcome == make_outcome()
    assert (await store.get(task.key)).outcome.stdout == b"printed"


async def test_a_reader_of_the_file_sees_what_was_answered(store, tmp_path):
    task = make_task()
    await store.add([task], {})
    with sqlite3.connect(tmp_path / "agent.db") as other:
        found = other.execute("SELECT task_id, status FROM tasks").fetchall()
    other.close()
    assert found == [(task.id, "pending")]


async def test_four_thousand_saves_at_once_are_all_kept(store):
    tasks = [make_task() for _ in range(4000)]
    await asyncio.gather(*(store.add([task], {}) for task in tasks))
    moved = await asyncio.gather(
        *(store.save(task, {"status": Status.ASSIGNED, "start_id": task.id}) for task in tasks)
    )
    assert moved == [True] * 4000
    kept = {task.id: task.start_id for task in await store.tasks([Status.ASSIGNED], limit=5000)}
    assert kept == {task.id: task.id for task in tasks}
