"""From a task to what is started: argument vector, environment, working directory."""

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent_core.clock import Instant
from agent_core.errors import NeverRan
from agent_core.lifecycle import Status
from agent_core.models import Launch, Task
from agent_core.removal import remove

BASH = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
SHEBANG_LIMIT = 255  # bytes of a #! line that the kernel reads


def new_start_id() -> str:
    return os.urandom(16).hex()


def build(
    task: Task,
    runs_dir: Path,
    *,
    start_id: str,
    devices: Sequence[str] = (),
    stored_at: Instant | None = None,
) -> Launch:
    """The Launch of the task's next start (or of the stored one, to find it again).

    Changes nothing; only looks whether a python or script command is a file, and with which
    line a script begins. Raises NeverRan for a description that nothing could start.
    """
    scratch = f"{runs_dir}/{start_id}"
    cwd = task.workdir or scratch
    if not os.path.isabs(cwd):
        raise NeverRan(f"the working directory {cwd!r} is not an absolute path; give it in full")
    _refuse_unusable(task)
    argv, script = _argv(task, cwd, f"{scratch}.script")
    progress = f"{scratch}.progress"
    env = {
        **task.env,
        "REMOTEGPU_TASK_ID": task.id,
        "REMOTEGPU_ATTEMPT_ID": task.attempt_id,
        "REMOTEGPU_RUN_NO": str(task.run_no + 1),
        "REMOTEGPU_START_ID": start_id,
        "REMOTEGPU_SCRATCH": scratch,
        "REMOTEGPU_PROGRESS": progress,
    }
    if devices:  # by UUID: numbers change when a device falls off
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return Launch(
        start_id=start_id,
        key=task.key,
        run_no=task.run_no + 1,
        argv=argv,
        text=" ".join((task.command, *task.args)),
        env=env,
        cwd=cwd,
        scratch=scratch,
        progress=progress,
        script=script,
        timeout=task.timeout,
        executor=task.wanted_executor,
        resources=task.resources,
        devices=tuple(devices),
        stored_at=stored_at,
        handle=task.handle,
    )


def recall(task: Task, runs_dir: Path) -> Launch:
    """The Launch of a start that was stored, for `reattach`.

    Its argv is empty where the files that it was made of are gone: they are not needed any more.
    """
    stored: dict[str, Any] = {
        "start_id": task.start_id,
        "devices": task.devices,
        "stored_at": task.assigned_at,
    }
    try:
        launch = build(task, runs_dir, **stored)
    except NeverRan:
        bare = replace(task, type="shell", command=task.command or ":", workdir="", args=(), env={})
        launch = replace(build(bare, runs_dir, **stored), argv=())
    return launch if task.status is Status.ASSIGNED else replace(launch, run_no=task.run_no)


def _argv(task: Task, cwd: str, script_path: str) -> tuple[tuple[str, ...], tuple[str, str] | None]:
    """The argument vector, and the script that must be written first."""
    command = task.command
    if task.args or task.exec:
        return (command, *task.args), None
    if task.type == "python":
        if _is_file(command, cwd):
            return ("python3", command), None
        return ("python3", "-c", command), None
    if task.type == "script":
        if _is_file(command, cwd):
            path = os.path.join(cwd, command)
            return (*_interpreter(_first_line(path)), path), None
        return (*_interpreter(command), script_path), (script_path, command)
    return (BASH, "-c", command), None


def _interpreter(text: str) -> tuple[str, ...]:
    """What a script's #! line names, read as the kernel reads it; bash where there is none."""
    if not text.startswith("#!"):
        return (BASH,)
    line = text.split("\n", 1)[0].split("\0", 1)[0]
    words = line[2:].strip().split(None, 1)
    return tuple(words) or (BASH,)


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.readline(SHEBANG_LIMIT).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise NeverRan(f"the script {path} cannot be read: {error.strerror}") from error


def _is_file(command: str, cwd: str) -> bool:
    return "\n" not in command and os.path.isfile(os.path.join(cwd, command))


def _refuse_unusable(task: Task) -> None:
    """What exec cannot carry is told now, in words, instead of as an error of the executor."""
    if not task.command:
        raise NeverRan("the command is empty")
    texts = [task.command, *task.args, *task.env.values(), *task.env, task.workdir]
    if any("\0" in text for text in texts):
        raise NeverRan("command, arguments, environment and workdir cannot hold a NUL character")
    try:
        for text in texts:
            os.fsencode(text)
    except UnicodeEncodeError as error:
        raise NeverRan(
            "command, arguments, environment and workdir must be text that UTF-8 can carry, "
            f"without {error.object[error.start : error.end]!a}"
        ) from error
    for name in task.env:
        if not name or "=" in name:
            raise NeverRan(f"the environment name {name!r} is empty or holds '='; rename it")


def make_room(launch: Launch, spare: str = "") -> None:
    """Make the run's private directory, of a spare one if there is, and its script.

    Raises OSError.
    """
    try:
        if spare:
            os.rename(spare, launch.scratch)
        else:
            os.mkdir(launch.scratch, 0o700)
    except OSError:  # it is there, or the spare one is not, or what is above it
        os.makedirs(launch.scratch, mode=0o700, exist_ok=True)
    if launch.script:
        path, text = launch.script
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o700)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)


def clear_room(launch: Launch, *, keep: bool = False) -> bool:
    """Remove what `make_room` made. False if something is left, for `clear_full_room`.

    `keep`: the directory itself stays, if it is as `make_room` made it.
    """
    if keep and not _as_made(launch.scratch):
        return False
    clear = True
    for path in _beside(launch) if keep else _made(launch):
        remove = os.rmdir if path == launch.scratch else os.unlink
        try:
            remove(path)
        except FileNotFoundError:
            continue
        except OSError:  # the task left something in it, or made a directory of it
            clear = False
    return clear


def _as_made(scratch: str) -> bool:
    """An empty directory of our own that nobody else may enter."""
    try:
        about = os.lstat(scratch)
        private = stat.S_ISDIR(about.st_mode) and stat.S_IMODE(about.st_mode) == 0o700
        return private and about.st_uid == os.geteuid() and not os.listdir(scratch)
    except OSError:
        return False


def remove_spare(scratch: str) -> None:
    """One that `clear_room` has kept and that nobody needed."""
    with contextlib.suppress(OSError):
        os.rmdir(scratch)


def clear_full_room(launch: Launch) -> None:
    """Remove it all with whatever the task left there; may take a while."""
    for path in _made(launch):
        remove(path)


def _made(launch: Launch) -> list[str]:
    return [*_beside(launch), launch.scratch]


def _beside(launch: Launch) -> list[str]:
    """The files that stand beside the directory."""
    script = [launch.script[0]] if launch.script else []
    return [launch.progress, *script]
