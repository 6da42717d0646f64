"""What is released: an sdist, the wheel that is built from it, and what an installer gets."""

import json
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fresh import ROOT, Environment, build, environment

PACKAGES = {
    "agent_core": ROOT,
    "agent_core_plugins": ROOT / "plugins",
    "agent_control_plane": ROOT / "plugins",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    sdist: Path
    wheel: Path  # built from the unpacked sdist
    environment: Environment  # holds that wheel


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    out = tmp_path_factory.mktemp("released")
    sdist, wheel = build(ROOT, out / "dist")
    made = environment(out / "environment")
    made.install(wheel)
    return Released(sdist=sdist, wheel=wheel, environment=made)


def test_the_sdist_holds_what_a_person_needs_to_build_test_and_read(released: Released) -> None:
    with tarfile.open(released.sdist) as tar:
        held = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    wanted = {
        "pyproject.toml", "Makefile", "constraints.txt", "settings.toml", "README.md", "LICENSE",
        "plugins/agent_core_plugins/__init__.py", "plugins/agent_control_plane/__init__.py",
        "tests/test_packaging.py", "docs/settings.md",
    }  # fmt: skip
    assert wanted <= held
    assert not [name for name in held if ".venv" in name or "__pycache__" in name]


def test_the_wheel_of_the_sdist_holds_every_module_and_nothing_else(released: Released) -> None:
    with zipfile.ZipFile(released.wheel) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {
        path.relative_to(root).as_posix()
        for package, root in PACKAGES.items()
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == modules


def test_every_entry_point_can_be_loaded_from_the_installed_wheel(
    released: Released, tmp_path: Path
) -> None:
    code = (
        "import json\n"
        "from importlib.metadata import distribution\n"
        "found = distribution('remotegpu').entry_points\n"
        "print(json.dumps({f'{e.group} {e.name}': e.load().__module__ for e in found}))\n"
        "import agent_core; print(agent_core.__file__)"
    )
    done = released.environment.run("python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded, place = done.stdout.splitlines()
    assert Path(place).is_relative_to(released.environment.path)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {f"{group} {n}" for group, names in project["entry-points"].items() for n in names}
    wanted |= {f"console_scripts {name}" for name in project["scripts"]}
    assert set(json.loads(loaded)) == wanted


def test_the_installed_command_lists_the_plugins_of_the_wheel(
    released: Released, tmp_path: Path
) -> None:
    done = released.environment.run("remotegpu", "plugins", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["plugins"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {p["name"] for p in told} == set(project["entry-points"]["agent_core"])
    assert {p["package"] for p in told} == {"remotegpu"}
    assert all(p["hooks"] for p in told)
