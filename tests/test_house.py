"""The rules of the house that a reader could break without noticing."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SOURCES = ("agent_core", "plugins")


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers_of(*modules: str) -> set[str]:
    return {
        names(path)
        for path in python_files(*SOURCES)
        if any(name in modules or name.startswith(tuple(f"{m}." for m in modules))
               for name in imported(path))
    }  # fmt: skip


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has imported after a statement."""
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# --- one place each


def test_settings_is_the_only_importer_of_dynaconf() -> None:
    assert importers_of("dynaconf") == {"agent_core/settings.py"}


def test_only_hooks_asks_plugins() -> None:
    asking = {
        names(path)
        for path in python_files(*SOURCES)
        if re.search(r"\b(pm|manager|pluginmanager)\.hook\b", path.read_text())
    }
    assert asking == {"agent_core/hooks.py"}


def test_only_moves_advances_a_task() -> None:
    calling = {
        names(path)
        for path in python_files("agent_core")
        if re.search(r"(?<!def )\badvance\(", path.read_text())
        and path.name not in {"lifecycle.py", "errors.py"}
    }
    assert calling == {"agent_core/moves.py"}


def test_the_life_of_a_task_imports_nothing_of_ours() -> None:
    ours = {name for name in imported(ROOT / "agent_core/lifecycle.py") if "agent_c" in name}
    assert ours == set()


def test_only_the_front_of_core_names_plugins_that_are_on_by_default() -> None:
    builtin = set(project()["project"]["entry-points"]["agent_core"])
    naming = {
        names(path)
        for path in python_files("agent_core")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Tuple)
        and len({e.value for e in node.elts if isinstance(e, ast.Constant)} & builtin) > 1
    }
    assert naming == {"agent_core/plugins.py"}


# --- what a start costs


def test_starting_the_agent_imports_no_control_plane_and_no_other_command() -> None:
    loaded = modules_after("import agent_core.agent, agent_core.cli.agent")
    unwanted = {"agent_control_plane", "alembic", "starlette", "uvicorn", "pytest"}
    assert {name for name in loaded if name.split(".")[0] in unwanted} == set()
    commands = {name for name in loaded if name.startswith("agent_core.cli.")}
    used = {"agent", "output", "text", "errors", "main", "registry"}
    assert {name.rsplit(".", 1)[1] for name in commands} <= used


def test_the_default_plugins_bring_no_control_plane_either() -> None:
    loaded = modules_after(
        "from agent_core.plugins import discover\n"
        "from agent_core.sections import PluginsSection\n"
        "discover(PluginsSection())"
    )
    assert {
        name for name in loaded if name.split(".")[0] in {"agent_control_plane", "alembic"}
    } == set()
    assert "agent_core_plugins.sqlite_store" in loaded


def test_the_front_page_brings_neither_pydantic_nor_dynaconf() -> None:
    loaded = modules_after("import agent_core")
    assert loaded & {"pydantic", "dynaconf", "structlog", "httpx", "sqlalchemy", "rich"} == set()


def test_everything_on_the_front_page_can_be_imported() -> None:
    import agent_core

    assert sorted(set(agent_core.__all__)) == sorted(agent_core.__all__)
    assert [name for name in agent_core.__all__ if not hasattr(agent_core, name)] == []


# --- words that do not belong


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False
    ).stdout.decode()
    found = [ROOT / name for name in listed.split("\0") if name]
    return [p for p in found if p.is_file()] or list(python_files(*SOURCES, "tests"))


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    machine = re.compile(
        r"/(?:work/(?:main|shared)|Users/\w+|home/(?!somebody|me\b|user\b|newcomer)\w+/)"
    )
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        if path != Path(__file__) and (match := machine.search(text)):
            found.append(f"{names(path)}: {match[0]}")
    assert found == []


# --- what is installed


def project() -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    found = {}
    for line in lines:
        requirement = Requirement(line)  # refuses options, such as an index address
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        assert requirement.url is None, line
        found[canonicalize_name(requirement.name)] = pin.version
    return found


def needed() -> dict[str, str]:
    """Every distribution that this project needs with all its extras, as it is installed here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()

    def walk(requirement: Requirement) -> None:
        for extra in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            installed = distribution(name)
            found[name] = installed.version
            for text in installed.requires or ():
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    walk(inner)

    walk(Requirement("remotegpu[test]"))
    del found["remotegpu"]
    return found


def test_every_distribution_that_is_needed_is_pinned() -> None:
    assert needed().items() <= pins().items()


@pytest.mark.parametrize("word", ["http://", "https://", "index", "-e ", "file:"])
def test_the_pins_name_no_place_to_get_them_from(word: str) -> None:
    assert word not in (ROOT / "constraints.txt").read_text()


def test_make_help_names_every_target_and_what_ci_calls_exists() -> None:
    targets = re.search(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text())
    assert targets is not None
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    told = set(re.findall(r"(?m)^make (\S+)", done.stdout))
    assert told == set(targets[1].split()) - {"help"}
    called = re.findall(r"(?m)\bmake ([a-z-]+)$", (ROOT / ".ci/run").read_text())
    assert set(called) == {"check", "test", "test-engines"} <= told
