"""What a task left goes, whatever it is, and nothing else goes with it."""

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_core import removal
from agent_core.recovery import sweep

NOBODY = 65534


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Path]:
    """A directory of somebody whom permissions bind, which they do not for root."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, NOBODY, -1)
        os.seteuid(NOBODY)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)


def nest(top: Path, levels: int, name: str = "d") -> None:
    """Deeper than any path can name."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.mark.parametrize("name", ["d", "long" * 60])
def test_directories_nested_by_the_thousand_end_nobody(tmp_path: Path, name: str) -> None:
    nest(tmp_path / "room", 3000, name)
    removal.remove(str(tmp_path / "room"))
    assert list(tmp_path.iterdir()) == []


def test_a_room_of_nested_directories_does_not_keep_an_agent_from_starting(tmp_path: Path) -> None:
    nest(tmp_path / "old", 3000)
    (tmp_path / "kept").mkdir()
    sweep(tmp_path, ["old", "kept"], {"kept"})
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_nested_directories_take_no_descriptor_for_each_level(tmp_path: Path) -> None:
    nest(tmp_path / "room", 600)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        removal.remove(str(tmp_path / "room"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o000, 0o500, 0o444, 0o100])
def test_directories_that_a_task_locked_go_too(plain: Path, mode: int) -> None:
    room = plain / "room"
    (room / "cache" / "module").mkdir(parents=True)
    (room / "cache" / "module" / "file").write_text("x")
    (room / "cache" / "module").chmod(mode)
    (room / "cache").chmod(mode)
    room.chmod(mode)
    removal.remove(str(room))
    assert list(plain.iterdir()) == []


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    precious.chmod(0o500)
    room = tmp_path / "room"
    (room / "a").mkdir(parents=True)
    (room / "link").symlink_to(precious)
    (room / "a" / "link").symlink_to(precious)
    (tmp_path / "itself").symlink_to(precious)
    for name in ("room", "itself"):
        removal.remove(str(tmp_path / name))
    assert [each.name for each in tmp_path.iterdir()] == ["precious"]
    assert (precious / "file").read_text() == "x"
    assert precious.stat().st_mode & 0o777 == 0o500


def test_a_file_a_pipe_and_names_that_are_no_text_go(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    os.mkfifo(room / "pipe")
    os.mkdir(os.fsencode(room) + b"/\xff\n")
    (tmp_path / "file").write_text("x")
    for name in ("room", "file", "nothing"):
        removal.remove(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_go_stays_and_the_rest_goes(plain: Path) -> None:
    room = plain / "room"
    (room / "free" / "x").mkdir(parents=True)
    (room / "file").write_text("x")
    plain.chmod(0o500)  # the room's name cannot be taken out of it
    removal.remove(str(room))
    plain.chmod(0o700)
    assert list(room.iterdir()) == []
