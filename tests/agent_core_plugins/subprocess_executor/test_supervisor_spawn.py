"""Starting a process by either path: found, refused and placed as exec would do it."""

import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_core_plugins.subprocess_executor.supervisor.spawn import Refused, Spawner
from agent_core_plugins.subprocess_executor.supervisor.tree import StartTimes, process


@pytest.fixture(params=[True, False], ids=["posix_spawn", "subprocess"])
def spawner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spawner]:
    limits, here = resource.getrlimit(resource.RLIMIT_NOFILE), os.getcwd()
    (tmp_path / "f").mkdir()
    yield Spawner(str(tmp_path / "f"), quick=request.param)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    os.chdir(here)
    assert os.listdir(tmp_path / "f") == []


def program(path: Path, code: int, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(mode)
    return path


def run(spawner: Spawner, cwd: Path, *argv: str, path: str = "/usr/bin:/bin") -> int:
    pid, fifos = spawner.start("a", list(argv), {"PATH": path}, str(cwd))
    status = os.waitpid(pid, 0)[1]
    for descriptor in fifos:
        os.close(descriptor)
    spawner.remove("a")
    return os.waitstatus_to_exitcode(status)


def refused(spawner: Spawner, cwd: Path, *argv: str, path: str = "/usr/bin") -> tuple[int, str]:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused) as caught:
        run(spawner, cwd, *argv, path=path)
    assert set(os.listdir("/proc/self/fd")) == before
    return caught.value.errno, caught.value.stage


def test_a_program_is_looked_for_in_the_tasks_own_path(spawner: Spawner, tmp_path: Path) -> None:
    program(tmp_path / "one" / "tool", 1, mode=0o644)  # passed over: it cannot be executed
    program(tmp_path / "two" / "tool", 2)
    (tmp_path / "file").write_text("")
    path = f"{tmp_path}/file:{tmp_path}/none:{tmp_path}/one:{tmp_path}/two"
    assert run(spawner, tmp_path, "tool", path=path) == 2
    assert run(spawner, tmp_path / "two", "./tool") == 2
    assert run(spawner, tmp_path, "tool", path="two") == 2  # seen from its working directory


def test_what_cannot_be_executed_is_refused_with_the_reason(
    spawner: Spawner, tmp_path: Path
) -> None:
    plain = program(tmp_path / "one" / "tool", 1, mode=0o644)
    assert refused(spawner, tmp_path, "tool", path=str(plain.parent)) == (errno.EACCES, "exec")
    both = f"{plain.parent}:{tmp_path}/none"
    assert refused(spawner, tmp_path, "tool", path=both) == (errno.EACCES, "exec")
    assert refused(spawner, tmp_path, "no-such-tool") == (errno.ENOENT, "exec")
    assert refused(spawner, tmp_path, "/no/such/tool") == (errno.ENOENT, "exec")
    assert refused(spawner, tmp_path, "/bin/echo", "a\0b") == (errno.EINVAL, "exec")
    assert refused(spawner, tmp_path / "none", "/bin/true") == (errno.ENOENT, "cwd")
    assert refused(spawner, plain, "/bin/true") == (errno.ENOTDIR, "cwd")
    assert os.getcwd() == "/"  # never left in a task's directory


def test_each_child_leads_a_session_of_its_own(spawner: Spawner, tmp_path: Path) -> None:
    pid, fifos = spawner.start("a", ["/bin/sleep", "1000"], {}, str(tmp_path))
    try:
        one = process(pid)
        assert one is not None
        assert (one.session, one.group) == (pid, pid)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        for descriptor in fifos:
            os.close(descriptor)
        spawner.remove("a")


def test_a_childs_start_time_is_the_one_that_proc_tells() -> None:
    times = StartTimes()
    for _ in range(100):
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        pid = os.posix_spawn("/bin/true", ["true"], {})
        told = times.of(pid, before)
        one = process(pid)
        os.waitpid(pid, 0)
        assert one is not None
        assert told == one.ticks


NOTICED = """
import os, sys

from agent_core_plugins.subprocess_executor.supervisor.strays import Strays
def sleeping():
    return os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})

mains = [sleeping() for _ in range(int(sys.argv[1]))]
strays = Strays()
before = strays.none_beside(len(mains))
mains.append(sleeping())
print(before, strays.none_beside(len(mains) - 1))
for pid in mains:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("number", [0, 1, 700])
def test_adopted_children_are_noticed_among_however_many(number: int) -> None:
    """In a process of its own: the test's process may have other children."""
    command = [sys.executable, "-c", NOTICED, str(number)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "True False\n"
