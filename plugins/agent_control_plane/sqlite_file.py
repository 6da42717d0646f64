"""The SQLite file of a server: found or made, locked, checked and of the right version."""

import contextlib
import fcntl
import os
import sqlite3
import time
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from agent_control_plane import schema
from agent_core import log
from agent_core.errors import SettingsError, StoreUnusable

_log = log.get("database")

VERSION: Final = int(schema.HEAD)  # also in PRAGMA user_version, where older programs look
BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another program's lock
CHECKED_WHOLE: Final = 64 * 2**20  # bytes; a larger file is not read through at the start


def file_of(url: str) -> Path:
    """The file that a database URL names. Raises SettingsError."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SettingsError(
            "server.database is no database URL; one is sqlite:////var/lib/x/server.db"
        ) from None
    if parsed.get_backend_name() != "sqlite" or parsed.query or not _names_file(parsed):
        raise SettingsError(
            f"server.database: {parsed.render_as_string(hide_password=True)} cannot be used; "
            "name a SQLite file by sqlite:////var/lib/x/server.db, or a PostgreSQL database by "
            "postgresql://user:password@host/database"
        )
    return Path(os.path.abspath(Path(parsed.database or "").expanduser()))


def _names_file(url: URL) -> bool:
    return bool(url.database) and url.database != ":memory:" and not url.host


class FileLock:
    """That no other server uses this file; the kernel lets go of it when the process ends."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise StoreUnusable(
                f"{path} is in use by another server; stop that one, "
                "or give this one a database of its own (server.database)"
            ) from None

    def close(self) -> None:
        os.close(self._fd)


def make_private(path: Path) -> None:
    """The directory and an empty file, readable by us alone: tasks carry secrets."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def inspect(path: Path) -> None:
    """Refuse a file that is not ours, newer or damaged, and leave it exactly as it is.

    Raises StoreUnusable, or sqlite3.Error.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version > VERSION:
            raise StoreUnusable(
                f"{path} was written by a newer version of remotegpu (tables {version}, this "
                f"program knows {VERSION}); start that version, or restore an older backup"
            )
        if path.stat().st_size < CHECKED_WHOLE:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise _damaged(path, found)
        if version == 0 and tables:
            raise StoreUnusable(
                f"{path} is a database of another program; name another file in server.database"
            )


def prepare(path: Path, engine: Engine) -> None:
    """Make the tables in a new file; bring those of an older one up to date, after a backup."""
    with engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA user_version").scalar() or 0
    if 0 < found < VERSION:
        _log.warning("the tables are older than this program, backing them up", file=str(path))
        _log.warning("backed up, bringing them up to date", backup=str(back_up(path, found)))
    if found < VERSION:
        with engine.begin() as connection:
            _bring_up_to_date(connection, found)


def back_up(path: Path, version: int) -> Path:
    """A copy as it is now, beside it."""
    now = time.strftime("%Y%m%dT%H%M%S")
    copy = path.with_name(f"{path.name}.tables-{version}-{now}")
    os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT)) as connection:
            connection.execute("VACUUM INTO ?", [str(copy)])
    except BaseException:
        copy.unlink()  # a part of it helps nobody, and may be what fills the disk
        raise
    return copy


def _bring_up_to_date(connection: Connection, found: int) -> None:
    if found == 0:
        schema.create(connection)
    else:
        if schema.version(connection) is None:  # made before there were revisions
            schema.stamp(connection, f"{found:04}")
        schema.upgrade(connection)
    connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")


def _damaged(path: Path, words: str) -> StoreUnusable:
    words = " ".join(words.split())
    return StoreUnusable(
        f"{path} is damaged ({words}); restore a backup, or move the file away to begin anew"
    )


def unusable(path: Path, error: BaseException) -> StoreUnusable:
    """Why the file cannot be opened, in one sentence that says what to do."""
    code = getattr(error, "sqlite_errorcode", None)
    code = None if code is None else code & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnusable(f"{path} is locked by another program; end that one and start again")
    if code == sqlite3.SQLITE_FULL:
        return StoreUnusable(f"{path}: no room on that disk; make some and start again")
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StoreUnusable(
        f"{path} cannot be opened ({words}); make its directory writable for this user, "
        "or name another file in server.database"
    )
