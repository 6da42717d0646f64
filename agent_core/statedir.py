"""The agent's own directories: state on disk, held by a lock, and a runtime directory on tmpfs."""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from agent_core.errors import StateDirectoryError
from agent_core.sections import AgentSection

LOCK = "lock"  # holds the pid of the agent that holds it
AGENT_ID = "agent_id"
MACHINE_ID = "machine_id"
RUNTIME = "runtime_dir"  # the choice, with the boot it was made in
RUNTIME_ROOM = 75  # characters of a runtime directory: a socket's whole path has 107 bytes
# Where a runtime directory may be if the environment names none; plugins make 0700 rooms in it.
SHARED = ("/run", "/dev/shm")  # noqa: S108
_ID = re.compile(r"[!-~]{1,128}")  # printable ASCII without blanks
_FILE_LIMIT = 8192  # bytes of any of these small files


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
        shared: Sequence[str] = SHARED,
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
            state.runtime_dir = _runtime(state, section.runtime_dir, environ, shared)
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
    where = Path(error.filename) if error.filename else path
    advice = {
        errno.ENOSPC: "free some space there, or choose another",
        errno.EDQUOT: "free some space there, or choose another",
        errno.EROFS: "choose one that can be written",
        errno.EACCES: f"let uid {os.geteuid()} write there, or choose another",
        errno.EPERM: f"let uid {os.geteuid()} write there, or choose another",
        errno.ENAMETOOLONG: "choose a shorter path",
    }.get(error.errno or 0, "choose another")
    raise StateDirectoryError(
        f"the state directory {path} cannot be used: {where}: {error.strerror}; "
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
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(path / LOCK, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise StateDirectoryError(
            f"the state directory {path} is held by another agent (pid {holder or 'unknown'}); "
            "stop that one, or give this one its own by agent.state_dir"
        ) from None
    except OSError:
        os.close(lock)
        raise
    return lock


def _once(path: Path, host: str) -> str:
    """The id in this file; made now if there is none."""
    if (kept := _read(path)) is not None:
        if _ID.fullmatch(kept):
            return kept
        raise StateDirectoryError(
            f"{path} holds no id (1 to 128 printable characters without blanks); write the "
            "former id into it, or delete it to become somebody new"
        )
    made = f"{host}-{secrets.token_hex(4)}"
    _write(path, made)
    return made


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_LIMIT).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """The whole file or the former one, also after a power cut."""
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _runtime(
    state: StateDirectory,
    named: Path | None,
    environ: Mapping[str, str],
    shared: Sequence[str],
) -> Path:
    """The runtime directory, the same one again until the machine is rebooted."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if named is not None:
        chosen = _named(named)
    elif (kept := _kept(state.path / RUNTIME, boot)) is not None:
        chosen = kept
    else:
        chosen = next(_candidates(environ, shared), state.path)
    if len(os.fsencode(chosen)) > RUNTIME_ROOM:
        raise StateDirectoryError(
            f"the runtime directory {chosen} is longer than {RUNTIME_ROOM} bytes, too long for a "
            "socket in it; choose a shorter one by agent.runtime_dir"
        )
    if not on_tmpfs(chosen):
        state.warnings += (
            f"the runtime directory {chosen} is not on a tmpfs: each start waits for the disk; "
            "choose one by agent.runtime_dir",
        )
    record = json.dumps({"path": str(chosen), "boot_id": boot})
    if _read(state.path / RUNTIME) != record:
        _write(state.path / RUNTIME, record)
    return chosen


def _named(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = _usable(path)
        reason = "not a directory that can be written"
    except OSError as error:
        usable, reason = False, error.strerror or str(error)
    if not usable:
        raise StateDirectoryError(
            f"the runtime directory {path} cannot be used: {reason}; choose another by "
            "agent.runtime_dir, or leave it empty"
        )
    return path


def _kept(path: Path, boot: str) -> Path | None:
    """An earlier choice of this boot, still usable: a supervisor may live there."""
    try:
        record = json.loads(_read(path) or "")
        kept = Path(record["path"])
        same = record["boot_id"] == boot and _usable(kept)
    except (ValueError, KeyError, TypeError):
        return None
    return kept if same else None


def _candidates(environ: Mapping[str, str], shared: Sequence[str]) -> Iterator[Path]:
    named = [environ.get("RUNTIME_DIRECTORY", "").split(":")[0], environ.get("XDG_RUNTIME_DIR", "")]
    for text in [*named, *shared]:
        path = Path(text)
        if not path.is_absolute() or len(os.fsencode(path)) > RUNTIME_ROOM:
            continue
        if text == "/dev/shm" and _swept_at_logout():  # noqa: S108
            continue
        if _usable(path) and on_tmpfs(path):
            yield path


def _usable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def on_tmpfs(path: Path) -> bool:
    """Whether a path is on tmpfs; False where the kernel does not tell."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return False
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ", 3)[2] == wanted:
            return after.split(" ", 1)[0] in {"tmpfs", "ramfs"}
    return False


def _swept_at_logout() -> bool:
    """logind's RemoveIPC empties /dev/shm of a login user who does not linger."""
    uid = os.geteuid()
    if uid < 1000 or not Path("/run/systemd/users").is_dir():
        return False
    import pwd  # noqa: PLC0415 - rarely needed

    try:
        return not Path("/var/lib/systemd/linger", pwd.getpwuid(uid).pw_name).exists()
    except KeyError:
        return True
