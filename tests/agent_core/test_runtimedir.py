"""The runtime directory: on tmpfs where there is one, and the same one after a restart."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_core.errors import StateDirectoryError
from agent_core.runtimedir import on_tmpfs, swept_at_logout
from agent_core.sections import AgentSection
from agent_core.statedir import StateDirectory

SHM = Path("/dev/shm")
with_tmpfs = pytest.mark.skipif(
    not SHM.is_dir() or not on_tmpfs(SHM), reason="there is no tmpfs at /dev/shm"
)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A path short enough for a socket below it, which pytest's own is not always."""
    with tempfile.TemporaryDirectory(prefix="rg-") as path:
        yield Path(path)


def opened(path: Path, **section: object) -> StateDirectory:
    return StateDirectory.open(AgentSection.model_validate({"state_dir": path, **section}))


def refusal(path: Path, **section: object) -> str:
    with pytest.raises(StateDirectoryError) as caught:
        opened(path, **section)
    return str(caught.value)


@with_tmpfs
def test_the_first_tmpfs_that_the_environment_names_is_taken(tmp_path: Path) -> None:
    on_disk = tmp_path / "disk"
    on_disk.mkdir()
    if on_tmpfs(on_disk):
        pytest.skip("the temporary directory is a tmpfs itself")
    environ = {"RUNTIME_DIRECTORY": str(on_disk), "XDG_RUNTIME_DIR": "/dev/shm"}
    state = StateDirectory.open(AgentSection(state_dir=tmp_path / "s"), environ, shared=())
    state.close()
    assert state.runtime_dir == SHM
    assert state.warnings == ()


@with_tmpfs
def test_a_start_from_another_environment_finds_the_same_runtime_directory(
    tmp_path: Path,
) -> None:
    section = AgentSection(state_dir=tmp_path / "s")
    first = StateDirectory.open(section, {"XDG_RUNTIME_DIR": "/dev/shm"}, shared=())
    first.close()
    again = StateDirectory.open(section, {}, shared=())
    again.close()
    assert again.runtime_dir == first.runtime_dir == SHM


def test_the_choice_is_made_anew_after_a_reboot_and_when_the_directory_is_gone(
    tmp_path: Path,
) -> None:
    section = AgentSection(state_dir=tmp_path / "s")
    former = tmp_path / "former"
    former.mkdir()
    opened(tmp_path / "s", runtime_dir=former).close()
    kept = StateDirectory.open(section, {}, shared=())
    kept.close()
    assert kept.runtime_dir == former

    record = json.loads((tmp_path / "s" / "runtime_dir").read_text())
    (tmp_path / "s" / "runtime_dir").write_text(json.dumps({**record, "boot_id": "another"}))
    rebooted = StateDirectory.open(section, {}, shared=())
    rebooted.close()
    assert rebooted.runtime_dir == tmp_path / "s"

    opened(tmp_path / "s", runtime_dir=former).close()
    former.rmdir()
    gone = StateDirectory.open(section, {}, shared=())
    gone.close()
    assert gone.runtime_dir == tmp_path / "s"


@pytest.mark.parametrize("record", ["", "{", "[]", '{"path": 1}', '{"path": "/x"}', "null"])
def test_a_record_of_the_choice_that_cannot_be_read_is_no_obstacle(
    tmp_path: Path, record: str
) -> None:
    opened(tmp_path / "s").close()
    (tmp_path / "s" / "runtime_dir").write_text(record)
    opened(tmp_path / "s").close()


def test_without_a_tmpfs_the_state_directory_serves_with_a_warning(tmp_path: Path) -> None:
    if on_tmpfs(tmp_path):
        pytest.skip("the temporary directory is a tmpfs itself")
    environ = {"XDG_RUNTIME_DIR": "/nonexistent", "RUNTIME_DIRECTORY": "relative"}
    state = StateDirectory.open(AgentSection(state_dir=tmp_path / "s"), environ, shared=())
    state.close()
    assert state.runtime_dir == tmp_path / "s"
    (warning,) = state.warnings
    assert "is not on a tmpfs" in warning
    assert "agent.runtime_dir" in warning


def test_a_named_runtime_directory_is_made_and_wins_over_the_kept_one(tmp_path: Path) -> None:
    opened(tmp_path / "s").close()
    state = opened(tmp_path / "s", runtime_dir=tmp_path / "r" / "t")
    state.close()
    assert state.runtime_dir == tmp_path / "r" / "t"
    assert (tmp_path / "r" / "t").stat().st_mode & 0o777 == 0o700


def test_a_named_runtime_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(tmp_path / "s", runtime_dir=tmp_path / "file")
    assert f"the runtime directory {tmp_path}/file cannot be used: File exists" in message


def test_a_runtime_directory_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path / "s", runtime_dir=tmp_path / ("r" * 100))
    assert "too long for a socket in it; choose a shorter one by agent.runtime_dir" in message


def test_shared_memory_is_not_taken_from_a_user_whom_logind_sweeps_up_after(
    tmp_path: Path,
) -> None:
    nobody = 54321  # no such name
    assert not swept_at_logout(nobody, tmp_path)
    (tmp_path / "run/systemd/users").mkdir(parents=True)
    assert swept_at_logout(nobody, tmp_path)
    assert not swept_at_logout(999, tmp_path)
