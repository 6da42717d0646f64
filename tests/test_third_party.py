"""A separately packaged executor: installed beside the wheel, enabled by name, and held to it."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fresh import ROOT, Environment, build, environment

pytestmark = pytest.mark.engines
PACKAGE = ROOT / "tests" / "third_party" / "bubblewrap_executor"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A fresh environment with this project's wheel (built from its sdist) and the other."""
    out = tmp_path_factory.mktemp("third-party")
    sdist = build(ROOT, out / "ours", "sdist")
    with tarfile.open(sdist) as tar:
        tar.extractall(out / "unpacked", filter="data")
    (source,) = (out / "unpacked").iterdir()
    wheel = build(source, out / "wheel", "wheel")
    theirs = build(PACKAGE, out / "theirs", "wheel")
    made = environment(out / "environment")
    made.install(wheel, theirs)
    return made


def test_its_own_tests_pass_where_only_the_two_packages_are_installed(
    site: Environment, engine: Callable[[str], str], tmp_path: Path
) -> None:
    engine("bwrap")
    settings = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    (tmp_path / "pytest.ini").write_text(settings)
    tests = tmp_path / "test_bubblewrap.py"
    tests.write_text((PACKAGE / "test_bubblewrap.py").read_text())
    done = site.run("python", "-m", "pytest", "-q", "--timeout=60", str(tests), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
