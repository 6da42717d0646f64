"""Rooms: made for a run, gone behind it, and made of one that another run has left empty."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_core import launch as launching
from agent_core import rooms
from agent_core.models import Launch
from agent_core.rooms import Rooms
from agent_core.testing.making import make_task


def launch(directory: Path, start_id: str, **fields: str) -> Launch:
    task = make_task(command="true", **fields)
    return launching.build(task, directory, start_id=start_id)


def identity(path: str) -> int:
    return os.stat(path).st_ino


async def until_cleared(many: Rooms) -> None:
    """Until those that were left have been looked at; spare ones still stand."""
    async with asyncio.timeout(10):
        while many._left or many._turn.locked() or not many._pause.awaited:
            await asyncio.sleep(0.001)


async def test_an_empty_room_that_was_left_becomes_the_next_runs(tmp_path: Path) -> None:
    many = Rooms()
    first, second = launch(tmp_path, "first"), launch(tmp_path, "second")
    await many.make(first)
    which = identity(first.scratch)
    await many.leave(first, over=True)
    await until_cleared(many)
    await many.make(second)
    assert identity(second.scratch) == which
    assert [path.name for path in tmp_path.iterdir()] == ["second"]
    await many.leave(second, over=True)
    await many.left()
    assert not list(tmp_path.iterdir())


def put_a_file(scratch: Path) -> None:
    (scratch / "model.bin").write_bytes(b"x")


def open_it_to_others(scratch: Path) -> None:
    scratch.chmod(0o777)


def put_a_link_in_its_place(scratch: Path) -> None:
    scratch.rmdir()
    scratch.symlink_to("/")


@pytest.mark.parametrize("task_did", [put_a_file, open_it_to_others, put_a_link_in_its_place])
async def test_a_room_in_which_something_was_changed_is_nobody_elses(
    tmp_path: Path, task_did: Callable[[Path], None]
) -> None:
    many = Rooms()
    first, second = launch(tmp_path, "first"), launch(tmp_path, "second")
    await many.make(first)
    task_did(Path(first.scratch))
    await many.leave(first, over=True)
    await until_cleared(many)
    assert not many._spare
    await many.make(second)
    about = os.lstat(second.scratch)
    assert about.st_mode & 0o7777 == 0o700
    assert not os.listdir(second.scratch)
    await many.leave(second, over=True)
    await many.left()
    assert not list(tmp_path.iterdir())


async def test_the_room_of_a_run_that_may_still_live_is_nobody_elses(tmp_path: Path) -> None:
    many = Rooms()
    first = launch(tmp_path, "first")
    await many.make(first)
    await many.leave(first)
    await until_cleared(many)
    assert not many._spare
    await many.left()
    assert not list(tmp_path.iterdir())


async def test_a_spare_room_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    many = Rooms()
    first, second = launch(tmp_path, "first"), launch(tmp_path, "second")
    await many.make(first)
    await many.leave(first, over=True)
    await until_cleared(many)
    Path(first.scratch).rmdir()
    await many.make(second)
    assert Path(second.scratch).is_dir()
    await many.leave(second)
    await many.left()


async def test_spare_rooms_are_bounded_and_go_when_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "SPARE", 2)
    monkeypatch.setattr(rooms, "QUIET", 0.1)
    many = Rooms()
    launches = [launch(tmp_path, f"run{number}") for number in range(5)]
    for each in launches:
        await many.make(each)
    for each in launches:
        await many.leave(each, over=True)
    await until_cleared(many)
    assert len(list(tmp_path.iterdir())) == len(many._spare) == 2
    while many._leaving:
        await many._leaving
    assert not list(tmp_path.iterdir())


async def test_a_script_is_written_into_a_room_and_goes_with_it(tmp_path: Path) -> None:
    many = Rooms()
    script = launch(tmp_path, "script", type="script")
    await many.make(script)
    assert script.script
    path, text = script.script
    assert Path(path).read_text() == text
    await many.leave(script, over=True)
    await many.left()
    assert not list(tmp_path.iterdir())


async def test_a_room_that_cannot_be_made_is_told_and_hinders_no_other(tmp_path: Path) -> None:
    many = Rooms()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        await many.make(launch(tmp_path / "file", "first"))
    await many.make(launch(tmp_path, "second"))
    assert (tmp_path / "second").is_dir()
