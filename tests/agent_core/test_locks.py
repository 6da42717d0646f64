"""A file that one process at a time may hold."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent_core.locks import HeldElsewhere, hold

HOLDER = """
import sys, time
from pathlib import Path
from agent_core.locks import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_who_holds_it_is_named_and_a_killed_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HeldElsewhere) as raised:
            hold(path)
        assert raised.value.pid == str(holder.pid)
        holder.send_signal(signal.SIGKILL)
    os.close(hold(path))
    assert path.read_text() == f"{os.getpid()}\n"


def test_a_refusal_leaves_no_descriptor_and_the_lock_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = hold(path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(HeldElsewhere):
            hold(path)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(held)
    os.close(hold(path))


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "lock").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        hold(tmp_path / "lock")
    assert (tmp_path / "precious").read_text() == "mine"
