"""The state directory: ours alone, held by one agent, and what a person reads when it cannot be."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from agent_core.errors import StateDirectoryError
from agent_core.sections import AgentSection
from agent_core.statedir import StateDirectory

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")

HOLD = """
import sys
from agent_core.sections import AgentSection
from agent_core.statedir import StateDirectory
state = StateDirectory.open(AgentSection(state_dir=sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
TRY = """
import sys
from agent_core.errors import StateDirectoryError
from agent_core.sections import AgentSection
from agent_core.statedir import StateDirectory
try:
    StateDirectory.open(AgentSection(state_dir=sys.argv[1]))
except StateDirectoryError as error:
    print(error)
"""


def opened(path: Path, **section: object) -> StateDirectory:
    return StateDirectory.open(AgentSection.model_validate({"state_dir": path, **section}))


def refusal(path: Path, **section: object) -> str:
    with pytest.raises(StateDirectoryError) as caught:
        opened(path, **section)
    return str(caught.value)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def another_agent(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the directory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        out: IO[str] | None = process.stdout
        assert out is not None
        assert out.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


# --- made and held


def test_it_is_made_with_its_parents_and_nobody_else_can_enter(tmp_path: Path) -> None:
    state = opened(tmp_path / "a" / "b")
    assert mode(state.path) == 0o700
    assert state.path == tmp_path / "a" / "b"
    state.close()


def test_the_umask_opens_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = opened(tmp_path / "s")
    finally:
        os.umask(before)
    assert mode(state.path) == 0o700
    assert [p.name for p in state.path.iterdir() if mode(p) & 0o077] == []
    state.close()


def test_a_second_agent_is_told_the_pid_of_the_first_and_the_directory(tmp_path: Path) -> None:
    with another_agent(tmp_path / "s") as first:
        message = refusal(tmp_path / "s")
    assert f"{tmp_path}/s is held by another agent (pid {first.pid})" in message
    assert "agent.state_dir" in message


def test_an_agent_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    with another_agent(tmp_path / "s") as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        opened(tmp_path / "s").close()


def test_what_is_closed_can_be_opened_again(tmp_path: Path) -> None:
    state = opened(tmp_path / "s")
    state.close()
    state.close()
    opened(tmp_path / "s").close()


def test_a_start_that_fails_later_lets_go_of_the_lock(tmp_path: Path) -> None:
    opened(tmp_path / "s").close()
    (tmp_path / "s" / "agent_id").write_text("\n")
    refusal(tmp_path / "s")
    (tmp_path / "s" / "agent_id").write_text("a\n")
    opened(tmp_path / "s").close()


def test_programs_that_the_agent_starts_do_not_inherit_the_lock(tmp_path: Path) -> None:
    state = opened(tmp_path / "s")
    listing = subprocess.run(
        ["/bin/ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, check=True
    ).stdout
    state.close()
    assert b"/proc/" in listing
    assert os.fsencode(tmp_path / "s" / "lock") not in listing


# --- who we are


def test_ids_are_made_once_and_kept(tmp_path: Path) -> None:
    first = opened(tmp_path / "s")
    first.close()
    again = opened(tmp_path / "s")
    again.close()
    assert first.agent_id == again.agent_id != ""
    assert first.machine_id == again.machine_id != first.agent_id
    other = opened(tmp_path / "t")
    other.close()
    assert other.agent_id != first.agent_id


def test_an_id_of_the_settings_wins_and_leaves_the_kept_one_alone(tmp_path: Path) -> None:
    kept = opened(tmp_path / "s")
    kept.close()
    named = opened(tmp_path / "s", id="named", machine_id="m")
    named.close()
    assert (named.agent_id, named.machine_id) == ("named", "m")
    again = opened(tmp_path / "s")
    again.close()
    assert again.agent_id == kept.agent_id


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe", b"x" * 129, b"a\0b"])
def test_an_id_that_is_none_is_not_replaced_in_silence(tmp_path: Path, content: bytes) -> None:
    opened(tmp_path / "s").close()
    (tmp_path / "s" / "machine_id").write_bytes(content)
    message = refusal(tmp_path / "s")
    assert f"{tmp_path}/s/machine_id holds no id" in message
    assert "delete it" in message
    assert (tmp_path / "s" / "machine_id").read_bytes() == content


# --- what cannot be used


def test_a_file_in_its_place_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    assert f"{tmp_path}/s cannot be used: Not a directory" in refusal(tmp_path / "s")
    assert "Not a directory" in refusal(tmp_path / "s" / "below")


def test_a_path_that_is_too_long_is_refused_in_words(tmp_path: Path) -> None:
    assert "File name too long; choose a shorter path" in refusal(tmp_path / ("x" * 300))


def test_a_directory_with_other_things_is_not_taken_and_not_closed_to_others(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    (home / "letter").write_text("")
    assert "is open to others (mode 0755) and holds other things" in refusal(home)
    assert mode(home) == 0o755
    home.chmod(0o700)
    opened(home).close()


def test_an_empty_directory_and_one_of_ours_are_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o755)
    opened(tmp_path / "s").close()
    assert mode(tmp_path / "s") == 0o700
    (tmp_path / "s").chmod(0o750)
    opened(tmp_path / "s").close()
    assert mode(tmp_path / "s") == 0o700


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "precious").write_text("keep me")
    (tmp_path / "s" / "lock").symlink_to(tmp_path / "precious")
    assert "cannot be used" in refusal(tmp_path / "s")
    assert (tmp_path / "precious").read_text() == "keep me"


@as_root
def test_a_directory_of_somebody_else_is_refused_with_both_uids(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    os.chown(tmp_path / "s", 12345, -1)
    message = refusal(tmp_path / "s")
    assert "belongs to uid 12345, and this agent runs as uid 0" in message


@as_user
def test_a_parent_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir(mode=0o500)
    message = refusal(tmp_path / "p" / "s")
    assert "Permission denied" in message
    assert f"let uid {os.geteuid()} write there" in message


@as_user
def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o500)
    assert f"{tmp_path}/s/lock: Permission denied" in refusal(tmp_path / "s")


def in_own_mounts(script: str, path: Path) -> str:
    """What a start says after `script`, in a mount namespace of its own; skips without one."""
    unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    mount = f'mount -t tmpfs -o size=64k,mode=0755 none "{path}"'
    try:
        usable = subprocess.run([*unshare, "sh", "-c", mount], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if usable.returncode != 0:
        pytest.skip("no mount namespace here")
    done = subprocess.run(
        [*unshare, "sh", "-ec", f'{mount}\n{script}\nexec "$@"', "sh", sys.executable, "-c", TRY,
         path / "s"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_read_only_file_system_is_told_and_what_to_do(tmp_path: Path) -> None:
    said = in_own_mounts(f'mkdir -m 700 "{tmp_path}/s"; mount -o remount,ro "{tmp_path}"', tmp_path)
    assert "Read-only file system; choose one that can be written by agent.state_dir" in said


def test_a_full_disk_is_told_and_what_to_do(tmp_path: Path) -> None:
    fill = f'mkdir -m 700 "{tmp_path}/s"; cat /dev/zero > "{tmp_path}/fill" 2>/dev/null || true'
    said = in_own_mounts(fill, tmp_path)
    assert "No space left on device; free some space there" in said
