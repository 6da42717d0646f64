"""From a task to what is started."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent_core import launch as launching
from agent_core.clock import Instant, SystemClock
from agent_core.errors import NeverRan
from agent_core.lifecycle import Status
from agent_core.models import Launch, Task
from tests.agent_core.core import task

BASH = launching.BASH


def build(given: Task, runs_dir: Path = Path("/runs")) -> Launch:
    return launching.build(given, runs_dir, start_id="s1")


@pytest.mark.parametrize(
    ("fields", "argv"),
    [
        ({"command": "a | b"}, (BASH, "-c", "a | b")),
        ({"command": "a | b", "type": "something new"}, (BASH, "-c", "a | b")),
        ({"command": "ls", "args": ("-l", "$HOME")}, ("ls", "-l", "$HOME")),
        ({"command": "ls", "args": ("-l",), "type": "python"}, ("ls", "-l")),
        ({"command": "a b", "exec": True}, ("a b",)),
        ({"command": "print(1)", "type": "python"}, ("python3", "-c", "print(1)")),
        ({"command": "a\nb", "type": "python"}, ("python3", "-c", "a\nb")),
        ({"command": "x" * 5000, "type": "python"}, ("python3", "-c", "x" * 5000)),
    ],
)
def test_how_a_command_runs(fields: dict[str, object], argv: tuple[str, ...]) -> None:
    launch = build(task(**fields))
    assert launch.argv == argv
    assert launch.script is None


@pytest.mark.parametrize(
    ("text", "interpreter"),
    [
        ("echo 1", (BASH,)),
        ("#!/bin/sh\necho 1", ("/bin/sh",)),
        ("#! /usr/bin/env  -S python3 -u \nprint(1)", ("/usr/bin/env", "-S python3 -u")),
        ("#!/bin/sh\r\necho 1", ("/bin/sh",)),
        ("#!\necho 1", (BASH,)),
        ("# a comment\n#!/bin/sh", (BASH,)),
    ],
)
def test_a_script_text_runs_by_its_first_line(text: str, interpreter: tuple[str, ...]) -> None:
    launch = build(task(command=text, type="script"))
    assert launch.argv == (*interpreter, "/runs/s1.script")
    assert launch.script == ("/runs/s1.script", text)


def test_a_script_file_runs_by_its_own_first_line_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "go").write_bytes(b"#!/bin/sh -e\0junk\necho 1\n")
    launch = build(task(command="go", type="script", workdir=str(tmp_path)))
    assert launch.argv == ("/bin/sh", "-e", f"{tmp_path}/go")
    assert launch.script is None


def test_a_first_line_is_read_no_further_than_the_kernel_reads(tmp_path: Path) -> None:
    (tmp_path / "go").write_bytes(b"#!/" + b"x" * 100_000)
    launch = build(task(command="go", type="script", workdir=str(tmp_path)))
    assert len(launch.argv[0]) == launching.SHEBANG_LIMIT - 2


def test_a_first_line_of_strange_bytes_is_carried_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "go").write_bytes(b"#!/bin/\xff\n")
    launch = build(task(command="go", type="script", workdir=str(tmp_path)))
    assert os.fsencode(launch.argv[0]) == b"/bin/\xff"


def test_a_python_file_is_run_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    launch = build(task(command="train.py", type="python", workdir=str(tmp_path)))
    assert launch.argv == ("python3", "train.py")


def test_a_script_that_cannot_be_read_never_runs() -> None:
    with pytest.raises(NeverRan, match="/proc/self/mem cannot be read: Input/output error"):
        build(task(command="/proc/self/mem", type="script"))


def test_the_environment_tells_who_it_is_and_a_task_cannot_tell_otherwise() -> None:
    mine = {"A": "1", "REMOTEGPU_TASK_ID": "another", "REMOTEGPU_SCRATCH": "/etc"}
    launch = build(task("t1", env=mine, run_no=2))
    assert launch.env == {
        "A": "1",
        "REMOTEGPU_TASK_ID": "t1",
        "REMOTEGPU_ATTEMPT_ID": "a1",
        "REMOTEGPU_RUN_NO": "3",
        "REMOTEGPU_START_ID": "s1",
        "REMOTEGPU_SCRATCH": "/runs/s1",
        "REMOTEGPU_PROGRESS": "/runs/s1.progress",
    }
    assert (launch.run_no, launch.progress, launch.scratch) == (3, "/runs/s1.progress", "/runs/s1")


def test_a_launch_carries_what_executor_and_validators_need() -> None:
    now = Instant.now(SystemClock())
    given = task(command="ls", args=("-l", "a b"), timeout=7.0, handle={"pid": 1})
    launch = launching.build(given, Path("/runs"), start_id="s1", stored_at=now)
    assert launch.text == "ls -l a b"
    assert (launch.key, launch.timeout, launch.handle) == (given.key, 7.0, {"pid": 1})
    assert (launch.stored_at, launch.start_id) == (now, "s1")


def test_without_a_workdir_a_run_is_in_its_private_directory() -> None:
    assert build(task()).cwd == "/runs/s1"
    assert build(task(workdir="/data")).cwd == "/data"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"workdir": "data"}, "'data' is not an absolute path"),
        ({"command": ""}, "the command is empty"),
        ({"command": "a\0"}, "NUL"),
        ({"args": ("a\0",)}, "NUL"),
        ({"env": {"A": "\0"}}, "NUL"),
        ({"env": {"A\0": ""}}, "NUL"),
        ({"workdir": "/a\0"}, "NUL"),
        ({"env": {"": "1"}}, "the environment name '' is empty"),
        ({"env": {"A=B": "1"}}, "the environment name 'A=B'"),
        ({"command": "echo \ud800"}, r"without '\\ud800'"),
        ({"env": {"A": "\ud800"}}, r"without '\\ud800'"),
    ],
)
def test_what_exec_cannot_carry_never_runs(fields: dict[str, object], words: str) -> None:
    with pytest.raises(NeverRan, match=words):
        build(task(**fields))


def test_start_ids_are_never_the_same() -> None:
    assert len({launching.new_start_id() for _ in range(100)}) == 100


# --- recall


def test_a_stored_start_is_recalled_with_its_own_id_and_number() -> None:
    now = Instant.now(SystemClock())
    assigned = task(status=Status.ASSIGNED, start_id="s7", run_no=1, assigned_at=now)
    launch = launching.recall(assigned, Path("/runs"))
    assert (launch.start_id, launch.run_no, launch.stored_at) == ("s7", 2, now)
    assert launch.argv == (BASH, "-c", "true")
    running = replace(assigned, status=Status.RUNNING, run_no=2, handle={"pid": 9})
    launch = launching.recall(running, Path("/runs"))
    assert (launch.start_id, launch.run_no, launch.handle) == ("s7", 2, {"pid": 9})


@pytest.mark.parametrize("fields", [{"command": ""}, {"workdir": "gone"}, {"env": {"": ""}}])
def test_a_run_is_recalled_even_if_it_could_not_be_built_any_more(
    fields: dict[str, object],
) -> None:
    running = task(status=Status.RUNNING, start_id="s7", run_no=2, **fields)
    launch = launching.recall(running, Path("/runs"))
    assert (launch.start_id, launch.argv, launch.run_no) == ("s7", (), 2)
    assert launch.scratch == "/runs/s7"


# --- the room


def test_room_is_made_for_us_alone_and_cleared_without_a_trace(tmp_path: Path) -> None:
    launch = build(task(command="#!/bin/sh\necho ü\udcff", type="script"), tmp_path)
    launching.make_room(launch)
    assert Path(launch.scratch).stat().st_mode & 0o777 == 0o700
    assert launch.script
    script = Path(launch.script[0])
    assert script.read_bytes() == b"#!/bin/sh\necho \xc3\xbc\xff"
    assert script.stat().st_mode & 0o777 == 0o700
    Path(launch.progress).write_text("50\n")
    assert launching.clear_room(launch)
    assert list(tmp_path.iterdir()) == []
    assert launching.clear_room(launch), "clearing twice is no error"


def test_a_script_is_never_written_through_a_link(tmp_path: Path) -> None:
    launch = build(task(command="echo", type="script"), tmp_path)
    target = tmp_path / "target"
    target.write_text("precious")
    assert launch.script
    os.symlink(target, launch.script[0])
    with pytest.raises(OSError, match="symbolic links"):
        launching.make_room(launch)
    assert target.read_text() == "precious"


def test_what_a_task_left_in_its_directory_goes_too(tmp_path: Path) -> None:
    launch = build(task(command="true", type="script"), tmp_path)
    launching.make_room(launch)
    Path(launch.scratch, "deep").mkdir()
    Path(launch.scratch, "deep", "file").write_text("x")
    assert not launching.clear_room(launch)
    assert Path(launch.scratch).exists()
    launching.clear_full_room(launch)
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_made_a_directory_of_its_progress_file_stops_nobody(tmp_path: Path) -> None:
    launch = build(task(), tmp_path)
    launching.make_room(launch)
    Path(launch.progress, "x").mkdir(parents=True)
    assert not launching.clear_room(launch)
    launching.clear_full_room(launch)
    assert list(tmp_path.iterdir()) == []


def test_clearing_follows_no_link_that_a_task_put_in_place_of_its_directory(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    launch = build(task(), tmp_path / "runs")
    launching.make_room(launch)
    os.rmdir(launch.scratch)
    os.symlink(precious, launch.scratch)
    assert not launching.clear_room(launch)
    launching.clear_full_room(launch)
    assert (precious / "file").exists()
