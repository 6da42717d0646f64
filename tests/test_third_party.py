"""A separately packaged executor: installed beside the wheel, enabled by name, and held to it."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end import site as end_to_end
from tests.fresh import ROOT, Environment, build, environment

pytestmark = pytest.mark.engines
PACKAGE = ROOT / "tests" / "third_party" / "bubblewrap_executor"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A fresh environment with this project's wheel (built from its sdist) and the other."""
    out = tmp_path_factory.mktemp("third-party")
    _, wheel = build(ROOT, out / "ours")
    _, theirs = build(PACKAGE, out / "theirs")
    made = environment(out / "environment")
    made.install(wheel, theirs)
    return made


def test_its_own_tests_pass_where_only_the_two_packages_are_installed(
    installed: Environment, engine: Callable[[str], str], tmp_path: Path
) -> None:
    engine("bwrap")
    settings = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    (tmp_path / "pytest.ini").write_text(settings)
    tests = tmp_path / "test_bubblewrap.py"
    tests.write_text((PACKAGE / "test_bubblewrap.py").read_text())
    done = installed.run("python", "-m", "pytest", "-q", "--timeout=60", str(tests), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@contextlib.contextmanager
def planted_server() -> Iterator[tuple[int, list[bytes]]]:
    """A TCP server on loopback, and what was said to it."""
    said: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                peer, _ = listener.accept()
                with peer:
                    said.append(peer.recv(100))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], said
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_a_task_of_an_agent_that_enables_it_reads_no_secret_and_reaches_no_server(
    installed: Environment,
    engine: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine("bwrap")
    secret = tmp_path / "secret"
    secret.write_text("planted\n")
    with end_to_end.site_in(tmp_path) as site, planted_server() as (port, said):
        command = (
            f"cat {secret}; exec 3<>/dev/tcp/127.0.0.1/{port} && echo $REMOTEGPU_TASK_ID >&3;"
            " echo 50 half >$REMOTEGPU_PROGRESS; echo mine >file; cat file"
        )
        site.start_server()
        open_agent = site.start_agent("open")
        outside = site.wait(site.submit(command))
        assert open_agent.stop() == 0

        monkeypatch.setattr(end_to_end, "REMOTEGPU", str(installed.path / "bin" / "remotegpu"))
        closed_agent = site.start_agent("closed", plugins__enable='["bubblewrap"]')
        inside = site.wait(site.submit(command))
        assert closed_agent.stop() == 0

    assert outside["stdout"] == "planted\nmine\n"  # so there was something to find
    assert inside["stdout"] == "mine\n"
    assert "No such file" in inside["stderr"]
    assert (outside["status"], inside["status"]) == ("completed", "completed")
    assert said == [outside["id"].encode() + b"\n"]
