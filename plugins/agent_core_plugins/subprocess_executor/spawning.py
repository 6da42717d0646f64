"""Starting a supervisor's process."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

SUPERVISOR = Path(__file__).with_name("supervisor")
BACKLOG = 16  # connections that may wait


def spawn(directory: Path) -> None:
    """Start a supervisor in a directory that has a journal and no socket yet. Raises OSError.

    It leaves our family at once. Its socket listens before it exists, so that nobody has to wait
    for it to be there; where certainly no process began, the socket is gone again.
    """
    path = directory / "socket"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
        open(directory / "log", "wb") as log,
    ):
        listener.bind(str(path))
        listener.listen(BACKLOG)
        try:
            done = subprocess.run(
                _command(directory, listener.fileno()),
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(),),
                check=False,
            )
        except OSError:
            os.unlink(path)
            raise
    if done.returncode < 0:  # killed, and nobody knows whether it had forked already
        raise OSError(errno.ECHILD, "the supervisor was killed while it was being started")
    if done.returncode > 0:
        os.unlink(path)
        raise OSError(errno.ECHILD, f"the supervisor cannot be started; {directory}/log says why")


def _command(directory: Path, listener: int) -> list[str]:
    """The base interpreter: a virtual environment that is replaced must not matter to it."""
    python = getattr(sys, "_base_executable", None) or sys.executable
    options = ["-I", "-S", "-X", "utf8"]
    return [python, *options, str(SUPERVISOR), str(directory), str(listener)]
