"""What SQLite's errors mean to the agent, in words."""

import errno
import os
import sqlite3

from agent_core import StoreError, StoreFull, StoreUnusable

_SPARE = 256 * 2**10  # bytes; less than this free, and an I/O error means that the disk is full


def translated(error: Exception, path: str) -> StoreError:
    """An error while the store is in use; what was asked has not been kept."""
    if isinstance(error, StoreError):
        return error
    name = _name(error)
    if is_full(error, path):
        return StoreFull(
            f"no room for the database {path} ({error}); free some space there: the agent tries "
            "again by itself"
        )
    if name in {"SQLITE_BUSY", "SQLITE_LOCKED"}:
        return StoreError(
            f"the database {path} is held by another program ({error}); close that one: the agent "
            "tries again by itself"
        )
    if name in {"SQLITE_CORRUPT", "SQLITE_NOTADB"}:
        return StoreError(
            f"the database {path} is damaged ({error}); stop the agent, keep a copy of the file, "
            "and let `sqlite3 FILE .recover` save what it can"
        )
    if isinstance(error, UnicodeEncodeError | OverflowError):
        return StoreError(f"a value cannot be stored: {error}")
    if isinstance(error, sqlite3.Error):
        return StoreError(f"the database {path} cannot be used now: {name} ({error})")
    return StoreError(f"what was asked of the store failed: {type(error).__name__}: {error}")


def unusable(error: Exception, path: str) -> StoreError:
    """An error while the store is opened: the agent cannot start."""
    if isinstance(error, StoreError):
        return error
    if is_full(error, path):
        return StoreFull(
            f"no room to open the database {path} ({error}); free some space there, or name "
            "another file by sqlite_store.path"
        )
    if isinstance(error, OSError):
        return StoreUnusable(
            f"the database {path} cannot be opened: {error.strerror or error}; let this user (uid "
            f"{os.geteuid()}) write there, or name another file by sqlite_store.path"
        )
    if _name(error) == "SQLITE_CORRUPT":
        return StoreUnusable(damaged(path, error))
    why = {
        "SQLITE_NOTADB": "is no SQLite database; move it away, or name another file",
        "SQLITE_BUSY": "is locked by another program; close that one, or name another file",
        "SQLITE_CANTOPEN": "cannot be opened; see that its directory exists and can be written, "
        "or name another file",
        "SQLITE_READONLY": "cannot be written; see to its permissions and the mount, or name "
        "another file",
        "SQLITE_PERM": "cannot be written; see to its permissions, or name another file",
    }.get(_name(error), "cannot be used; see to its disk, or name another file")
    return StoreUnusable(f"the database {path} {why} by sqlite_store.path ({error})")


def damaged(path: str, why: object) -> str:
    why = " ".join(str(why).split())  # SQLite tells it on several lines
    return (
        f"the database {path} is damaged; keep a copy, let `sqlite3 FILE .recover` save what it "
        f"can, or move it away to begin anew, or name another file by sqlite_store.path ({why})"
    )


def is_full(error: Exception, path: str) -> bool:
    """Whether room is what was lacking; some of it comes as an I/O error."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    name = _name(error)
    if name == "SQLITE_FULL":
        return True
    if name not in {"SQLITE_IOERR", "SQLITE_CANTOPEN"}:
        return False
    try:
        found = os.statvfs(os.path.dirname(path) or ".")
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _SPARE or (found.f_files > 0 and found.f_favail == 0)


def _name(error: Exception) -> str:
    """SQLite's primary code by name, also of an extended one such as SQLITE_BUSY_SNAPSHOT."""
    name = str(getattr(error, "sqlite_errorname", "") or type(error).__name__)
    return "_".join(name.split("_")[:2])
