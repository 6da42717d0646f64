"""Nothing is answered before COMMIT, and only what cannot be kept fails: on failing commits,
full disks, held files and closed loops."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from agent_core import Answer, EventKind, Receipt, Status, StoreError, StoreFull, TaskRun
from agent_core.testing.store import finish, make_event, make_outcome, make_task
from agent_core_plugins.sqlite_store.opening import open_database
from agent_core_plugins.sqlite_store.store import SqliteTasks
from agent_core_plugins.sqlite_store.writer import Writer


@pytest.fixture
async def store(tmp_path: Path):
    store = SqliteTasks(open_database(tmp_path / "agent.db", busy=0.2))
    yield store
    await store.close()


@pytest.fixture
def db(tmp_path: Path):
    """A connection whose COMMIT fails when a child has no parent: a constraint looked at last."""
    db = sqlite3.connect(tmp_path / "some.db", isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
    db.execute(
        "CREATE TABLE children (id INTEGER PRIMARY KEY, parent INTEGER "
        "REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)"
    )
    yield db
    db.close()


def kept(path: Path, query: str) -> set[int]:
    """What another connection finds."""
    other = sqlite3.connect(path)
    try:
        return {row[0] for row in other.execute(query)}
    finally:
        other.close()


def child(number: int, parent: int | None = None):
    def work(db: sqlite3.Connection) -> int:
        db.execute("INSERT INTO children VALUES (?, ?)", (number, parent))
        return number

    return work


async def test_a_commit_that_fails_answers_nobody_with_success(db, tmp_path):
    writer = Writer(db, "some.db")
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        await writer.do(child(1, parent=99))
    assert await writer.do(child(2)) == 2
    await writer.close()
    assert kept(tmp_path / "some.db", "SELECT id FROM children") == {2}


async def test_of_a_batch_whose_commit_fails_only_the_culprits_fail(db, tmp_path):
    writer = Writer(db, "some.db")
    work = [child(number, 99 if number in {0, 7, 63} else None) for number in range(64)]
    results = await asyncio.gather(*map(writer.do, work), return_exceptions=True)
    await writer.close()
    failed = {number for number, result in enumerate(results) if isinstance(result, StoreError)}
    assert failed == {0, 7, 63}
    assert [result for result in results if not isinstance(result, StoreError)] == sorted(
        kept(tmp_path / "some.db", "SELECT id FROM children")
    )
    assert len(kept(tmp_path / "some.db", "SELECT id FROM children")) == 61


async def test_work_that_raises_takes_nothing_of_its_neighbours_along(db, tmp_path):
    def half_done(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO children VALUES (1000, NULL)")
        raise ZeroDivisionError("in the middle")

    writer = Writer(db, "some.db")
    work = [child(1), half_done, child(2), child(1), child(3)]
    results = await asyncio.gather(*map(writer.do, work), return_exceptions=True)
    await writer.close()
    assert [type(result) for result in results] == [int, StoreError, int, StoreError, int]
    assert "ZeroDivisionError: in the middle" in str(results[1])
    assert kept(tmp_path / "some.db", "SELECT id FROM children") == {1, 2, 3}


async def test_what_waits_is_written_together_and_in_order(db):
    commits = 0
    seen: list[int] = []

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    def note(number: int):
        return lambda db: seen.append(number)

    db.set_trace_callback(count)
    writer = Writer(db, "some.db")
    await asyncio.gather(*(writer.do(note(number)) for number in range(1000)))
    await writer.close()
    db.set_trace_callback(None)
    assert seen == list(range(1000))
    assert commits < 20


async def test_too_much_that_waits_is_refused_as_no_room(db):
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    writer = Writer(db, "some.db", waiting=3)

    def hold(db: sqlite3.Connection) -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()

    held = asyncio.ensure_future(writer.do(hold))
    while writer._jobs or held.done() or not db.in_transaction:
        await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(writer.do(child(number))) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(StoreFull, match="wait for the disk"):
        await writer.do(child(9))
    gate.set()
    assert await asyncio.gather(held, *waiting) == [None, 0, 1, 2]
    await writer.close()


async def test_a_file_that_another_program_holds_fails_the_batch_once_and_then_heals(
    store, tmp_path
):
    other = sqlite3.connect(tmp_path / "agent.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    tasks = [make_task() for _ in range(50)]
    begun: list[str] = []
    store._opened.writing.set_trace_callback(begun.append)
    asked = asyncio.gather(*(store.add([task], {}) for task in tasks), return_exceptions=True)
    results = await asked
    assert all("held by another program" in str(error) for error in results)
    assert begun.count("BEGIN IMMEDIATE") <= 2  # each of them waits for the whole busy timeout
    store._opened.writing.set_trace_callback(None)
    other.execute("ROLLBACK")
    other.close()
    assert await store.add(tasks, {}) == tasks


async def test_a_full_database_refuses_what_does_not_fit_and_keeps_the_rest(store, tmp_path):
    writing = store._opened.writing
    tasks = [make_task() for _ in range(30)]
    await store.add(tasks, {})
    (pages,) = writing.execute("PRAGMA page_count").fetchone()
    writing.execute(f"PRAGMA max_page_count = {pages + 20}")
    big, small = make_outcome(bytes(200_000)), make_outcome(b"small")
    ended = await asyncio.gather(
        *(
            finish(store, task, big if number in {3, 11, 12} else small)
            for number, task in enumerate(tasks)
        ),
        return_exceptions=True,
    )
    failed = {number for number, task in enumerate(ended) if isinstance(task, StoreFull)}
    assert failed == {3, 11, 12}
    assert all("free some space" in str(ended[number]) for number in failed)
    writing.execute("PRAGMA max_page_count = 1000000")
    for number in failed:
        ended[number] = await finish(store, tasks[number], big)
    await store.close()
    again = SqliteTasks(open_database(tmp_path / "agent.db"))
    assert [await again.get(task.key) for task in tasks] == ended
    assert len(await again.outbox(limit=100)) == 30
    await again.close()


async def test_a_claim_that_does_not_fit_leaves_no_part_of_itself(store):
    writing = store._opened.writing
    await store.set_fact("request", "1")
    (pages,) = writing.execute("PRAGMA page_count").fetchone()
    writing.execute(f"PRAGMA max_page_count = {pages + 5}")
    claim = [make_task(), make_task(command="x" * 100_000), make_task()]
    with pytest.raises(StoreFull):
        await store.add(claim, {"request": "2"})
    assert await store.tasks() == []
    assert await store.get_fact("request") == "1"


FILL = """
    import asyncio, resource, sys
    from pathlib import Path
    from agent_core import StoreError, StoreFull
    from agent_core.testing.store import make_task
    from agent_core_plugins.sqlite_store.opening import open_database
    from agent_core_plugins.sqlite_store.store import SqliteTasks

    async def main(path, room):
        store = SqliteTasks(open_database(Path(path)))
        if room:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        kept, errors = set(), []
        async def add(number):
            task = make_task(id=f"{number}", command="x" * 500)
            try:
                await store.add([task], {})
                kept.add(task.id)
            except StoreError as error:
                errors.append(error)
        for first in range(0, 20000, 40):
            await asyncio.gather(*(add(number) for number in range(first, first + 40)))
            if len(errors) > 200:
                break
        print(len(kept), len(errors), all(isinstance(each, StoreFull) for each in errors))
        print(errors[0])
        listed = set()
        after = None
        while page := await store.tasks(limit=1000, after=after):
            after = page[-1].key
            listed |= {task.id for task in page}
        print("same" if listed == kept else f"lost {kept - listed}, never told {listed - kept}")
        if room:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        else:
            Path(path).with_name("filler").unlink()
        await store.add([make_task(id="after")], {})
        await store.close()
        again = SqliteTasks(open_database(Path(path)))
        found = {task.id for task in await again.tasks(limit=10000)}
        print("kept" if found == kept | {"after"} else f"lost {kept - found}")
        await again.close()

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def fill(path: Path, room: int) -> list[str]:
    """Adds until nothing fits any more, in a process of its own; what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(FILL), str(path), str(room)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_when_the_disk_takes_no_more_everything_answered_is_in_the_file(tmp_path):
    """The log meets RLIMIT_FSIZE: writes fail at COMMIT, as they do on a full disk."""
    counts, why, listed, reopened = fill(tmp_path / "agent.db", 300_000)
    kept_count, error_count = map(int, counts.split()[:2])
    assert kept_count > 100
    assert error_count > 200
    assert "agent.db" in why
    assert (listed, reopened) == ("same", "kept")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_on_a_full_disk_everything_answered_is_in_the_file_and_it_heals(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode()}")
    try:
        (disk / "filler").write_bytes(bytes(300_000))
        counts, why, listed, reopened = fill(disk / "agent.db", 0)
        assert counts.endswith(" True")  # each error was a StoreFull
        assert int(counts.split()[0]) > 50
        assert "free some space there" in why
        assert (listed, reopened) == ("same", "kept")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        shutil.rmtree(disk)


async def test_events_that_cannot_be_settled_on_a_full_disk_stay(store):
    task = make_task()
    await store.add([task], {})
    await finish(store, task, make_outcome())
    events = await store.outbox(limit=1)
    writing = store._opened.writing
    writing.execute("PRAGMA query_only = 1")  # no write is possible at all
    with pytest.raises(StoreError):
        await store.settle([Receipt(seq=events[0].seq, answer=Answer.TAKEN)])
    writing.execute("PRAGMA query_only = 0")
    assert await store.outbox(limit=1) == events
    await store.settle([Receipt(seq=events[0].seq, answer=Answer.TAKEN)])
    assert await store.outbox(limit=1) == []


async def test_a_run_and_its_event_are_kept_with_their_move_or_not_at_all(store):
    task = make_task(status=Status.RUNNING, start_id="s", run_no=1)
    await store.add([task], {})
    run = TaskRun(1, 1.0, make_outcome(b"first"))
    event = make_event(task, EventKind.RUN)
    assert await store.save(task, {"status": Status.PENDING}, event, run)
    back = replace(task, status=Status.PENDING)
    assert await store.save(back, {"status": Status.RUNNING})
    with pytest.raises(StoreError, match="UNIQUE"):  # run 1 has ended already
        await store.save(task, {"status": Status.PENDING}, event, run)
    assert await store.get(task.key) == task
    assert len(await store.outbox(limit=10)) == 1
    assert await store.runs(task.key) == [run]


def test_a_closed_loop_leaves_the_writer_alive(db, tmp_path):
    """Who waited is gone with its loop; what it asked for is kept, others are served."""
    writer = Writer(db, "some.db")

    async def leave() -> None:
        asyncio.ensure_future(writer.do(child(1))).cancel()
        asyncio.ensure_future(writer.do(child(2)))  # noqa: RUF006 - left behind on purpose
        await asyncio.sleep(0)

    async def serve() -> None:
        assert await writer.do(child(3)) == 3
        await writer.close()

    asyncio.run(leave())
    asyncio.run(serve())
    assert kept(tmp_path / "some.db", "SELECT id FROM children") >= {2, 3}
