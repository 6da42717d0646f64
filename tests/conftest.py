"""What every test may use: an environment without settings, and engines that may be missing."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.postgres import Cluster, cluster
from tests.postgres import program as program_of_postgres


@pytest.fixture(autouse=True, scope="session")
def _no_settings_of_this_machine() -> None:
    """Whoever runs the tests may have an agent's variables in the environment."""
    for name in list(os.environ):
        if name.upper().startswith("REMOTEGPU_") or name in {"SERVER_URL", "MACHINE_ID"}:
            del os.environ[name]
    for name in ("AGENT_PORT", "AGENT_DB_PATH", "AGENT_MAX_WORKERS", "AGENT_ID", "AGENT_TOKEN"):
        os.environ.pop(name, None)
    os.environ.pop("PYTHONUNBUFFERED", None)  # hides what a buffer that cannot be flushed does
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each program would compile everything anew


@pytest.fixture
def engine() -> Callable[[str], str]:
    """The path of a program that a bare machine lacks; skips, or fails where it must be there."""

    def find(program: str) -> str:
        path = shutil.which(program)
        if path is None and os.environ.get("REQUIRE_ENGINES") == "1":
            pytest.fail(f"{program} is not installed, and REQUIRE_ENGINES=1 says that it must be")
        if path is None:
            pytest.skip(f"{program} is not installed")
        return path

    return find


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server for all tests of this process; each takes a schema of its own."""
    if program_of_postgres("initdb") is None:
        words = "PostgreSQL is not installed"
        if os.environ.get("REQUIRE_ENGINES") == "1":
            pytest.fail(f"{words}, and REQUIRE_ENGINES=1 says that it must be")
        pytest.skip(words)
    with cluster() as made:
        yield made
