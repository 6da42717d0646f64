"""A database that cannot be opened says why and what to do; an old one is brought up to date."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from agent_core import StoreError, StoreFull, StoreUnusable
from agent_core.testing.store import make_task
from agent_core_plugins.sqlite_store.failures import translated, unusable
from agent_core_plugins.sqlite_store.opening import open_database
from agent_core_plugins.sqlite_store.steps import STEPS
from agent_core_plugins.sqlite_store.store import SqliteTasks
from agent_core_plugins.sqlite_store.tables import Table


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused(path: Path, *words: str, **given) -> None:
    """Opening fails with these words, names the file, and leaves nothing open or locked."""
    counts = []
    for _ in range(3):
        with pytest.raises(StoreUnusable) as caught:
            open_database(path, **given)
        for word in (*words, str(path), "sqlite_store.path"):
            assert word in str(caught.value)
        counts.append(descriptors())
    assert len(set(counts)) == 1


def made(path: Path, count: int = 0) -> list[str]:
    """A closed database with so many tasks; their ids."""

    async def fill() -> list[str]:
        store = SqliteTasks(open_database(path))
        tasks = [make_task(env={"some": "x" * 400}) for _ in range(count)]
        await store.add(tasks, {})
        await store.close()
        return [task.id for task in tasks]

    return asyncio.run(fill())


def content(path: Path) -> list[str]:
    async def read() -> list[str]:
        store = SqliteTasks(open_database(path))
        try:
            return [task.id for task in await store.tasks()]
        finally:
            await store.close()

    return asyncio.run(read())


def test_the_steps_lead_to_the_tables_as_they_are_declared(tmp_path):
    opened = open_database(tmp_path / "agent.db")
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    found = {name: " ".join(text.split()) for name, text in opened.reading.execute(query)}
    opened.close()
    found.pop("sqlite_sequence")
    declared = {}
    for table in Table.metadata.tables.values():
        declared[table.name] = str(CreateTable(table).compile(dialect=sqlite.dialect()))
        for index in table.indexes:
            declared[index.name] = str(CreateIndex(index).compile(dialect=sqlite.dialect()))
    tidy = {name: " ".join(text.split()) for name, text in declared.items()}
    spaced = {name: text.replace("( ", "(").replace(" )", ")") for name, text in tidy.items()}
    assert {name: text.replace("( ", "(").replace(" )", ")") for name, text in found.items()} == (
        spaced
    )


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "agent.db"
    path.write_text("these are my holiday notes\n" * 100)
    refused(path, "is no SQLite database", "move it away")
    assert path.read_text().startswith("these are my holiday notes")


@pytest.mark.parametrize("version", [0, 1, 7])
def test_a_database_of_another_program_is_left_alone(tmp_path, version):
    path = tmp_path / "agent.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE tasks (id TEXT)")
        other.execute(f"PRAGMA user_version = {version}")
    other.close()
    before = path.read_bytes()
    refused(path, "of another program")
    assert path.read_bytes() == before


def test_a_newer_database_is_left_alone(tmp_path):
    path = tmp_path / "agent.db"
    ids = made(path, 1)
    with sqlite3.connect(path) as newer:
        newer.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    newer.close()
    refused(path, f"of version {len(STEPS) + 1}", "newer")
    with sqlite3.connect(path) as back:
        back.execute(f"PRAGMA user_version = {len(STEPS)}")
    back.close()
    assert content(path) == ids


@pytest.mark.parametrize("offset", [100, 4096, 4096 * 5, 4096 * 20])
def test_a_damaged_database_is_not_worked_with(tmp_path, offset):
    path = tmp_path / "agent.db"
    made(path, 300)
    whole = path.read_bytes()
    assert len(whole) > offset + 4096
    path.write_bytes(whole[:offset] + b"\xa5" * 4096 + whole[offset + 4096 :])
    refused(path, "is damaged", "keep a copy", ".recover")


def test_a_database_that_was_cut_off_is_not_worked_with(tmp_path):
    path = tmp_path / "agent.db"
    made(path, 300)
    path.write_bytes(path.read_bytes()[:-20_000])
    refused(path, "is damaged")


def test_a_file_that_another_program_holds_is_not_opened(tmp_path):
    path = tmp_path / "agent.db"
    made(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    refused(path, "is locked by another program", busy=0.1)
    other.close()
    assert content(path) == []


def test_two_agents_never_have_one_database(tmp_path):
    path = tmp_path / "agent.db"
    (tmp_path / "link.db").symlink_to(path)
    opened = open_database(path)
    for name in (path, tmp_path / "link.db"):
        refused(name, f"used by another agent (pid {os.getpid()})")
    opened.close()
    open_database(tmp_path / "link.db").close()


def test_the_lock_goes_with_the_process_that_held_it(tmp_path):
    path = tmp_path / "agent.db"
    hold = (
        "import sys, time\nfrom pathlib import Path\n"
        "from agent_core_plugins.sqlite_store.opening import open_database\n"
        "opened = open_database(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", hold, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        refused(path, f"used by another agent (pid {holder.pid})")
        holder.kill()
        holder.wait()
    open_database(path).close()


def test_a_directory_that_is_not_there_is_named(tmp_path):
    refused(tmp_path / "missing" / "agent.db", "No such file or directory")


def test_a_directory_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "agent.db").mkdir()
    refused(tmp_path / "agent.db", "Is a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        refused(tmp_path / "agent.db", "Permission denied", f"uid {os.geteuid()}")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ("size=64k", StoreFull, "free some space there"),
        ("size=64k,nr_inodes=1", StoreFull, "free some space there"),
        ("ro", StoreUnusable, "Read-only file system"),
    ],
)
def test_a_disk_that_takes_nothing_is_named(tmp_path, options, error, words):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    done = subprocess.run(mount, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.decode()}")
    try:
        with pytest.raises(error, match=words) as caught:
            open_database(disk / "agent.db")
        assert str(disk / "agent.db") in str(caught.value)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_older_database_is_copied_and_brought_up_to_date(tmp_path):
    path = tmp_path / "agent.db"
    ids = made(path, 3)

    def more(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE more (id TEXT)")

    opened = open_database(path, steps=(*STEPS, more))
    assert opened.reading.execute("PRAGMA user_version").fetchone() == (len(STEPS) + 1,)
    assert opened.reading.execute("SELECT count(*) FROM more").fetchone() == (0,)
    stream = opened.stream
    opened.close()
    copy = Path(f"{path}.version-{len(STEPS)}")
    assert copy.stat().st_mode & 0o777 == 0o600
    assert content(copy) == ids  # by the program that knows no newer version
    again = open_database(path, steps=(*STEPS, more))
    assert again.stream == stream
    again.close()


def test_a_step_that_fails_leaves_the_version_before_it(tmp_path):
    path = tmp_path / "agent.db"
    ids = made(path, 3)

    def fails(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE more (id TEXT)")
        db.execute("ALTER TABLE tasks RENAME COLUMN name TO title")
        db.execute("INSERT INTO nowhere VALUES (1)")

    for _ in range(2):
        with pytest.raises(StoreUnusable, match="no such table: nowhere"):
            open_database(path, steps=(*STEPS, fails))
    assert content(path) == ids


def test_a_first_step_that_fails_leaves_an_empty_file_that_is_taken_later(tmp_path):
    path = tmp_path / "agent.db"

    def fails(db: sqlite3.Connection) -> None:
        STEPS[0](db)
        raise sqlite3.OperationalError("in the middle")

    with pytest.raises(StoreUnusable, match="in the middle"):
        open_database(path, steps=(fails,))
    assert content(path) == []


def test_a_torn_end_of_the_log_is_no_damage(tmp_path):
    path = tmp_path / "agent.db"
    store_ids = made(path, 2)
    opened = open_database(path)
    opened.writing.execute("INSERT INTO facts VALUES ('a', '1')")
    log = Path(f"{path}-wal").read_bytes()
    whole = path.read_bytes()
    opened.close()
    path.write_bytes(whole)
    Path(f"{path}-wal").write_bytes(log[:-100] + b"\x00" * 40)
    assert content(path) == store_ids


def test_errors_of_the_disk_are_told_apart_from_a_full_one(tmp_path):
    db = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.Error) as caught:
        db.execute("SELECT * FROM nowhere")
    db.close()
    path = str(tmp_path / "agent.db")
    assert "SQLITE_ERROR (no such table: nowhere)" in str(translated(caught.value, path))
    assert "cannot be used; see to its disk" in str(unusable(caught.value, path))
    passed_on = StoreFull("full")
    assert translated(passed_on, path) is unusable(passed_on, path) is passed_on
    no_room = OSError(28, "No space left on device")
    assert isinstance(unusable(no_room, path), StoreFull)
    assert isinstance(translated(no_room, path), StoreFull)
    failing = sqlite3.OperationalError("disk I/O error")
    failing.sqlite_errorname = "SQLITE_IOERR_WRITE"
    assert type(translated(failing, path)) is StoreError
    # A full disk may show as a failed write. A file system without any free block is at hand.
    assert type(translated(failing, "/proc/agent.db")) is StoreFull
    assert type(translated(failing, str(tmp_path / "gone" / "agent.db"))) is StoreError
    corrupt = sqlite3.DatabaseError("malformed")
    corrupt.sqlite_errorname = "SQLITE_CORRUPT"
    assert ".recover" in str(translated(corrupt, path))
