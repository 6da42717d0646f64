"""How the agent's database came to be what it is: one step a version, never changed afterwards."""

import os
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from agent_core import StoreUnusable

APPLICATION_ID = 0x52475055  # "RGPU", in the file's header: this database is ours

Step = Callable[[sqlite3.Connection], None]

_FIRST = (
    """CREATE TABLE tasks (
        task_id TEXT NOT NULL,
        attempt_id TEXT NOT NULL,
        source TEXT NOT NULL,
        name TEXT NOT NULL,
        type TEXT NOT NULL,
        command TEXT NOT NULL,
        args TEXT NOT NULL,
        exec BOOLEAN NOT NULL,
        workdir TEXT NOT NULL,
        env TEXT NOT NULL,
        timeout REAL NOT NULL,
        priority INTEGER NOT NULL,
        max_retries INTEGER NOT NULL,
        retry_delay REAL NOT NULL,
        created_at REAL NOT NULL,
        unreadable TEXT NOT NULL,
        extra TEXT NOT NULL,
        status TEXT NOT NULL,
        lease REAL,
        lease_boottime REAL,
        lease_boot_id TEXT,
        lease_stop_after REAL,
        due_at REAL NOT NULL,
        retry_count INTEGER NOT NULL,
        run_no INTEGER NOT NULL,
        start_id TEXT NOT NULL,
        assigned_at REAL,
        assigned_at_boottime REAL,
        assigned_at_boot_id TEXT,
        started_at REAL,
        started_at_boottime REAL,
        started_at_boot_id TEXT,
        executor TEXT NOT NULL,
        handle TEXT NOT NULL,
        reason TEXT,
        exit_code INTEGER,
        signal TEXT,
        error_code INTEGER,
        error TEXT,
        dropped_stdout INTEGER,
        dropped_stderr INTEGER,
        usage TEXT,
        ended_at REAL,
        stdout BLOB,
        stderr BLOB,
        PRIMARY KEY (task_id, attempt_id)
    )""",
    "CREATE INDEX tasks_by_status ON tasks (status, created_at, task_id, attempt_id)",
    "CREATE INDEX tasks_by_turn ON tasks"
    " (priority, created_at, task_id, attempt_id, due_at, status) WHERE status = 'pending'",
    "CREATE INDEX tasks_by_due_time ON tasks (due_at, status) WHERE status = 'pending'",
    """CREATE TABLE runs (
        task_id TEXT NOT NULL,
        attempt_id TEXT NOT NULL,
        run_no INTEGER NOT NULL,
        started_at REAL,
        reason TEXT,
        exit_code INTEGER,
        signal TEXT,
        error_code INTEGER,
        error TEXT,
        dropped_stdout INTEGER,
        dropped_stderr INTEGER,
        usage TEXT,
        ended_at REAL,
        stdout BLOB,
        stderr BLOB,
        PRIMARY KEY (task_id, attempt_id, run_no)
    )""",
    """CREATE TABLE outbox (
        kind TEXT NOT NULL,
        task_id TEXT NOT NULL,
        attempt_id TEXT NOT NULL,
        source TEXT NOT NULL,
        run_no INTEGER NOT NULL,
        at REAL NOT NULL,
        started_at REAL,
        next_run_at REAL,
        seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT
    )""",
    """CREATE TABLE dead_letters (
        kind TEXT NOT NULL,
        task_id TEXT NOT NULL,
        attempt_id TEXT NOT NULL,
        source TEXT NOT NULL,
        run_no INTEGER NOT NULL,
        at REAL NOT NULL,
        started_at REAL,
        next_run_at REAL,
        seq INTEGER NOT NULL,
        code INTEGER NOT NULL,
        message TEXT NOT NULL,
        PRIMARY KEY (seq)
    )""",
    "CREATE TABLE facts (name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name))",
    "CREATE TABLE stream (id TEXT NOT NULL, PRIMARY KEY (id))",
)


def _create(db: sqlite3.Connection) -> None:
    for statement in _FIRST:
        db.execute(statement)
    db.execute("INSERT INTO stream (id) VALUES (?)", (secrets.token_hex(8),))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


_ASKING = (
    "user TEXT NOT NULL",
    "depends_on TEXT NOT NULL",
    "labels TEXT NOT NULL",
    "resources TEXT NOT NULL",
    "wanted_executor TEXT NOT NULL",
    "devices TEXT NOT NULL",
)


def _ask_for_machines(db: sqlite3.Connection) -> None:
    """Tasks may wait for others, and ask for labels, resources and an executor.

    The table is made anew, so that the output goes on standing behind everything else in a row.
    """
    place = "        reason TEXT,\n"
    table, *indexes = (text for text in _FIRST if " tasks " in text)
    names = [row[1] for row in db.execute("PRAGMA table_info(tasks)")]
    columns = "".join(f"        {column},\n" for column in _ASKING)
    db.execute("ALTER TABLE tasks RENAME TO tasks_1")
    for index in ("tasks_by_status", "tasks_by_turn", "tasks_by_due_time"):
        db.execute(f"DROP INDEX {index}")
    db.execute(table.replace(place, columns + place))
    db.execute(  # names of our own table
        f"INSERT INTO tasks ({', '.join(names)}, user, depends_on, labels, resources,"  # noqa: S608
        f" wanted_executor, devices) SELECT {', '.join(names)}, '', '[]', '{{}}', '{{}}', '', '[]'"
        " FROM tasks_1"
    )
    db.execute("DROP TABLE tasks_1")
    for text in indexes:
        db.execute(text)


# The step at index n makes version n + 1 of version n.
STEPS: tuple[Step, ...] = (
    _create,
    _ask_for_machines,
)  # the step at index n makes version n + 1 of version n


def bring_up_to_date(db: sqlite3.Connection, path: str, steps: Sequence[Step] = STEPS) -> None:
    """Take the steps that this database lacks, each in one transaction with its version.

    A database that holds something already is copied beside itself first. Raises StoreUnusable
    for one that is not ours or is newer than this program.
    """
    version = _version(db, path, len(steps))
    if 0 < version < len(steps):
        _back_up(db, f"{path}.version-{version}")
    for number, step in enumerate(steps[version:], version + 1):
        db.execute("BEGIN IMMEDIATE")  # Python's driver begins none before a CREATE
        try:
            step(db)
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def _version(db: sqlite3.Connection, path: str, newest: int) -> int:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    ours = db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if not ours and not (empty and version == 0):
        raise StoreUnusable(
            f"{path} is the database of another program (an older agent's, perhaps); "
            "name another file by sqlite_store.path"
        )
    if version > newest:
        raise StoreUnusable(
            f"the database {path} is of version {version}, and this program knows up to "
            f"{newest}: it was used by a newer one; install that again, or name another file by "
            "sqlite_store.path"
        )
    return version


def _back_up(db: sqlite3.Connection, copy: str) -> None:
    """Keep what an upgrade starts from: whole under its name, or not there."""
    new = Path(f"{copy}.new")
    new.unlink(missing_ok=True)
    file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        db.execute("VACUUM INTO ?", (str(new),))  # which syncs nothing by itself
        os.fsync(file)
        new.rename(copy)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
