"""The program that a task names: where it is, and in words why it could not be started."""

import errno
import os
import sys
from collections.abc import Mapping, Sequence

from agent_core.errors import NeverRan
from agent_core.models import Launch

PASSING = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EDQUOT}
)
PATH = "/usr/local/bin:/usr/bin:/bin"  # where programs are looked for if the task has no PATH
SITE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # an agent without one


def never_ran(
    number: int, *, argv: Sequence[str], cwd: str, path: str = PATH, at: str = "exec"
) -> NeverRan:
    """An errno as a sentence for the person who submitted the task.

    `at` is the stage that failed: "cwd", "exec", or any other word for what the site must put
    right. What may pass by itself (no memory, no room, too many processes) is marked so.
    """
    reason = os.strerror(number)
    if number in PASSING:
        return NeverRan(f"no process could be started now ({at}): {reason}", passing=True)
    if at == "cwd":
        return NeverRan(
            f"the working directory {cwd} cannot be used: {reason}; make it on that machine, or "
            "name another"
        )
    if at != "exec":
        return NeverRan(f"no process could be started ({at}): {reason}", passing=True)
    program = argv[0]
    if number == errno.ENOENT:
        if "/" not in program:
            return NeverRan(
                f"there is no program {program} in PATH ({path}); install it on that machine, or "
                "give its whole path"
            )
        if os.path.exists(os.path.join(cwd, program)):
            return NeverRan(f"the interpreter that {program} names in its first line is missing")
        return NeverRan(
            f"there is no program {program} on that machine; install it there, or mend its path"
        )
    if number == errno.EACCES:
        return NeverRan(
            f"{program} is not executable for the agent's user: {reason}; chmod +x it, or give it "
            "to its interpreter"
        )
    if number == errno.ENOEXEC:
        return NeverRan(
            f"{program} is no program of this machine; a script needs a first line like #!/bin/sh"
        )
    if number == errno.E2BIG:
        return NeverRan("the command and its environment are larger than this system takes")
    return NeverRan(f"{program} cannot be started: {reason}")


def site_path(environ: Mapping[str, str]) -> str:
    """PATH without the agent's virtual environment: a task's python3 is the site's."""
    path = environ.get("PATH", "")
    if sys.prefix != sys.base_prefix:
        own = os.path.realpath(os.path.join(sys.prefix, "bin"))
        parts = [part for part in path.split(os.pathsep) if part and os.path.realpath(part) != own]
        path = os.pathsep.join(parts)
    return path or SITE_PATH


def find_program(launch: Launch, env: Mapping[str, str]) -> str:
    """The file that is to be executed, for executors whose wrapper would not tell.

    Raises NeverRan if there is none, or it is not executable.
    """
    name, path = launch.program or launch.argv[0], env.get("PATH", PATH)
    if "/" in name:
        candidates = [os.path.join(launch.cwd, name)]
    else:
        candidates = [os.path.join(part or ".", name) for part in path.split(os.pathsep)]
    files = [file for file in candidates if os.path.isfile(file)]
    for file in files:
        if os.access(file, os.X_OK):
            return file
    number = errno.EACCES if files else errno.ENOENT
    raise never_ran(number, argv=launch.argv, cwd=launch.cwd, path=path)
