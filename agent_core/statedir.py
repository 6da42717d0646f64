"""The state directory: on disk, this agent's alone, held by a lock; keeps who the agent is."""

import contextlib
import errno
import os
import re
import secrets
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from agent_core import runtimedir
from agent_core.errors import StateDirectoryError
from agent_core.files import read_small, write_small
from agent_core.locks import HeldElsewhere, hold
from agent_core.sections import AgentSection

LOCK = "lock"  # holds the pid of the agent that holds it
AGENT_ID = "agent_id"
MACHINE_ID = "machine_id"
_ID = re.compile(r"[!-~]{1,128}")  # printable ASCII without blanks


class StateDirectory:
    """An opened state directory: ours alone until it is closed or this process ends."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.runtime_dir = path
        self.agent_id = ""
        self.machine_id = ""
        self.warnings: tuple[str, ...] = ()  # to be logged by the agent
        self._lock = lock

    @classmethod
    def open(
        cls,
        section: AgentSection,
        environ: Mapping[str, str] = os.environ,
        shared: Sequence[str] = runtimedir.SHARED,
    ) -> "StateDirectory":
        """Make or take the directory. Raises StateDirectoryError with what to do about it."""
        path = section.state_dir
        try:
            _make_private(path)
            state = cls(path, _take_lock(path))
        except OSError as error:
            _refuse(path, error)
        try:
            host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64] or "agent"
            state.agent_id = section.id or _once(path / AGENT_ID, host)
            state.machine_id = section.machine_id or _once(path / MACHINE_ID, host)
            state.runtime_dir, state.warnings = runtimedir.choose(
                path, section.runtime_dir, environ, shared
            )
        except OSError as error:
            state.close()
            _refuse(path, error)
        except BaseException:
            state.close()
            raise
        return state

    def close(self) -> None:
        """Let go of the lock; the files stay."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _refuse(path: Path, error: OSError) -> NoReturn:
    inner = error.filename and Path(error.filename) != path
    where = f"{error.filename}: " if inner else ""
    advice = {
        errno.ENOSPC: "free some space there, or choose another",
        errno.EDQUOT: "free some space there, or choose another",
        errno.EROFS: "choose one that can be written",
        errno.EACCES: f"let uid {os.geteuid()} write there, or choose another",
        errno.EPERM: f"let uid {os.geteuid()} write there, or choose another",
        errno.ENAMETOOLONG: "choose a shorter path",
    }.get(error.errno or 0, "choose another")
    raise StateDirectoryError(
        f"the state directory {path} cannot be used: {where}{error.strerror}; "
        f"{advice} by agent.state_dir"
    ) from None


def _make_private(path: Path) -> None:
    """Make it, 0700, or see that it is a directory of ours that nobody else can enter."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(
            errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename
        ) from None
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if found.st_uid != os.geteuid():
        raise StateDirectoryError(
            f"the state directory {path} belongs to uid {found.st_uid}, and this agent runs as "
            f"uid {os.geteuid()}; start it as its owner, or choose another by agent.state_dir"
        )
    if not found.st_mode & 0o077:
        return
    # Only what is ours or empty is closed to others: somebody may have named /tmp or a home.
    if (path / LOCK).exists() or not any(path.iterdir()):
        path.chmod(0o700)
        return
    raise StateDirectoryError(
        f"the state directory {path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}) "
        f"and holds other things; choose an empty one by agent.state_dir, or chmod 700 {path}"
    )


def _take_lock(path: Path) -> int:
    """The lock's descriptor; it is let go when this process ends, however it ends."""
    try:
        return hold(path / LOCK)
    except HeldElsewhere as error:
        raise StateDirectoryError(
            f"the state directory {path} is held by another agent (pid {error.pid}); "
            "stop that one, or give this one its own by agent.state_dir"
        ) from None


def _once(path: Path, host: str) -> str:
    """The id in this file; made now if there is none."""
    if (kept := read_small(path)) is not None:
        if _ID.fullmatch(kept):
            return kept
        raise StateDirectoryError(
            f"{path} holds no id (1 to 128 printable characters without blanks); write the "
            "former id into it, or delete it to become somebody new"
        )
    made = f"{host}-{secrets.token_hex(4)}"
    write_small(path, made)
    return made
