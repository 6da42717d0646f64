"""What a run says of itself, read from whatever a task puts there."""

import os
from pathlib import Path

import pytest

from agent_core import progress
from agent_core.models import Progress


def read(path: Path, data: bytes) -> Progress | None:
    path.write_bytes(data)
    return progress.read(str(path))


@pytest.mark.parametrize(
    ("data", "percent", "message"),
    [
        (b"42 training\n", 42, "training"),
        (b"1\n2\n3 third", 3, "third"),
        (b"42\n\n  \n", 42, ""),
        (b"100 % done\n", 100, "done"),
        (b"7% x\n", 7, "x"),
        (b"0\n", 0, ""),
        (b"101 of many\n", None, "101 of many"),
        (b"999\n", None, "999"),
        (b"1000 items\n", None, "1000 items"),
        (b"42training\n", None, "42training"),
        (b"-5 x\n", None, "-5 x"),
        (b"epoch 3\n", None, "epoch 3"),
        (b"\xff\x00 x\n", None, "\ufffd\ufffd x"),
        (b"10 a\r20 b\r", 20, "b"),
    ],
)
def test_the_last_line_counts(
    tmp_path: Path, data: bytes, percent: int | None, message: str
) -> None:
    assert read(tmp_path / "p", data) == Progress(percent=percent, message=message)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"  \r\n"])
def test_a_file_that_says_nothing_invents_nothing(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path / "p", data) is None


def test_no_file_is_no_progress(tmp_path: Path) -> None:
    assert progress.read(str(tmp_path / "none")) is None


def test_of_a_huge_file_only_the_end_is_read_and_a_message_is_cut(tmp_path: Path) -> None:
    told = read(tmp_path / "p", b"1 x\n" * 100_000 + b"99 " + b"y" * 1000 + b"\n")
    assert told == Progress(percent=99, message="y" * (progress.MESSAGE_LIMIT - 3))
    told = read(tmp_path / "p", b"5 early\n" + b"z" * (2 * progress.READ_LIMIT))
    assert told == Progress(message="z" * progress.MESSAGE_LIMIT)


def test_a_fifo_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    assert progress.read(str(tmp_path / "p")) is None


def test_a_directory_is_no_progress_and_costs_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert progress.read(str(tmp_path)) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("50 token\n")
    (tmp_path / "p").symlink_to(tmp_path / "secret")
    assert progress.read(str(tmp_path / "p")) is None


def test_the_last_line_of_output_is_what_a_person_would_see() -> None:
    assert progress.last_line(b"one\ntwo\n\n") == "two"
    assert progress.last_line(b"10%\r20%\r\n") == "20%"
    assert progress.last_line(b"one\n \r \n") == "one"
    assert progress.last_line(b"") == ""
