"""The runtime directory: where sockets and journals are; on tmpfs, and the same after a restart."""

import json
import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent_core.clock import this_boot
from agent_core.errors import StateDirectoryError
from agent_core.files import read_small, write_small

RECORD = "runtime_dir"  # in the state directory: the choice, with the boot it was made in
ROOM = 75  # bytes of a runtime directory: a socket's whole path has 107
# Where it may be if the environment names none; plugins make 0700 rooms in it.
SHARED = ("/run", "/dev/shm")  # noqa: S108
_FIRST_USER = 1000  # uid; logind sweeps up after these, not after system users


def choose(
    state: Path,
    named: Path | None,
    environ: Mapping[str, str] = os.environ,
    shared: Sequence[str] = SHARED,
) -> tuple[Path, tuple[str, ...]]:
    """The directory, and what the agent should warn of. Keeps the choice until a reboot.

    A start from another environment so finds the supervisor that lives there. Raises
    StateDirectoryError, and OSError where the choice cannot be kept.
    """
    boot = this_boot()
    if named is not None:
        chosen = _named(named)
    elif (kept := _kept(state / RECORD, boot)) is not None:
        chosen = kept
    else:
        chosen = next(_candidates(environ, shared), state)
    if len(os.fsencode(chosen)) > ROOM:
        raise StateDirectoryError(
            f"the runtime directory {chosen} is longer than {ROOM} bytes, too long for a "
            "socket in it; choose a shorter one by agent.runtime_dir"
        )
    record = json.dumps({"path": str(chosen), "boot_id": boot})
    if read_small(state / RECORD) != record:
        write_small(state / RECORD, record)
    if on_tmpfs(chosen):
        return chosen, ()
    return chosen, (
        f"the runtime directory {chosen} is not on a tmpfs: each start waits for the disk; "
        "choose one by agent.runtime_dir",
    )


def _named(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = _usable(path)
        reason = "it cannot be written"
    except OSError as error:
        usable, reason = False, error.strerror or str(error)
    if not usable:
        raise StateDirectoryError(
            f"the runtime directory {path} cannot be used: {reason}; choose another by "
            "agent.runtime_dir, or leave it empty"
        )
    return path


def _kept(record: Path, boot: str) -> Path | None:
    """An earlier choice of this boot, still usable: a supervisor may live there."""
    try:
        kept = json.loads(read_small(record) or "")
        path = Path(kept["path"])
        return path if kept["boot_id"] == boot and _usable(path) else None
    except (ValueError, KeyError, TypeError):
        return None


def _candidates(environ: Mapping[str, str], shared: Sequence[str]) -> Iterator[Path]:
    first = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]  # systemd may give several
    for text in [first, environ.get("XDG_RUNTIME_DIR", ""), *shared]:
        path = Path(text)
        if not path.is_absolute() or len(os.fsencode(path)) > ROOM:
            continue
        if text == "/dev/shm" and swept_at_logout(os.geteuid()):  # noqa: S108
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


def swept_at_logout(uid: int, root: Path = Path("/")) -> bool:
    """logind's RemoveIPC empties /dev/shm of a login user who does not linger."""
    if uid < _FIRST_USER or not (root / "run/systemd/users").is_dir():
        return False
    try:
        return not (root / "var/lib/systemd/linger" / pwd.getpwuid(uid).pw_name).exists()
    except KeyError:
        return True  # no name, so nobody can have made it linger
