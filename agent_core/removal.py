"""Removes what a task left behind: however deep, locked, or a link to somewhere else."""

import contextlib
import os
import stat
import uuid
from collections.abc import Callable
from typing import Final, ParamSpec

_P = ParamSpec("_P")
ROUNDS: Final = 100_000  # a level of directories each; an end, should somebody make them all along
_DIRECTORY: Final = os.O_DIRECTORY | os.O_CLOEXEC


def remove(path: str) -> None:
    """Remove a file, a link itself, or a tree. What cannot go, such as a mount, stays: no error.

    `shutil.rmtree` recurses, and holds a descriptor for each level: a task needs only nest some
    thousand directories to end whoever calls it. It also gives up at what forbids its own owner to
    write, as the caches of some package managers do.
    """
    with contextlib.suppress(OSError):
        try:
            top = _open(path)
        except NotADirectoryError:
            os.unlink(path)
            return
        try:
            for _ in range(ROUNDS):
                if not _round(top):
                    break
        finally:
            os.close(top)
        os.rmdir(path)


def _round(top: int) -> bool:
    """Empty a directory by one level: what its directories hold moves up. False: nothing went."""
    went = False
    with os.scandir(top) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                went |= _hollow(top, entry.name)
            else:
                went |= _done(os.unlink, entry.name, dir_fd=top)
    return went


def _hollow(top: int, name: str) -> bool:
    went = False
    with contextlib.suppress(OSError):
        inner = _open(name, top)
        try:
            with os.scandir(inner) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        went |= _done(_lift, entry.name, inner, top)
                    else:
                        went |= _done(os.unlink, entry.name, dir_fd=inner)
        finally:
            os.close(inner)
    return _done(os.rmdir, name, dir_fd=top) or went


def _lift(name: str, inner: int, top: int) -> None:
    with contextlib.suppress(OSError):
        os.close(_open(name, inner))  # only who may write to a directory may move it
    os.rename(name, uuid.uuid4().hex, src_dir_fd=inner, dst_dir_fd=top)


def _open(name: str, parent: int | None = None) -> int:
    """A directory, never through a link, opened to its owner first. Raises OSError."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | _DIRECTORY, dir_fd=parent)
    try:
        itself = f"/proc/self/fd/{handle}"  # no name that could become a link meanwhile
        if stat.S_IMODE(os.fstat(handle).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(itself, stat.S_IRWXU)
        return os.open(itself, os.O_RDONLY | _DIRECTORY)
    finally:
        os.close(handle)


def _done(step: Callable[_P, None], *given: _P.args, **options: _P.kwargs) -> bool:
    try:
        step(*given, **options)
    except OSError:
        return False
    return True
