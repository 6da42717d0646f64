"""settings.toml and docs/settings.md say what the models say."""

import importlib.util
import re
import types
from pathlib import Path

import pytest

from agent_core.older_settings import NAMES
from agent_core.plugins import discover
from agent_core.sections import CORE_SECTIONS, PluginsSection
from agent_core.settings import known_tables, load
from agent_core.sources import LEGACY

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def make() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs/make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_files_are_as_make_docs_writes_them(make: types.ModuleType) -> None:
    assert (ROOT / "settings.toml").read_text() == make.settings_toml(), "run make docs"
    assert (ROOT / "docs/settings.md").read_text() == make.settings_page(), "run make docs"


def test_every_table_that_can_be_set_is_documented(make: types.ModuleType) -> None:
    builtin = {"priority_scheduler", "syncer", "machine_metrics"}  # have no settings of their own
    assert set(make.models()) | builtin >= known_tables()


def test_settings_toml_sets_nothing_until_somebody_takes_a_comment_away(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text((ROOT / "settings.toml").read_text())
    loaded = load(tmp_path / "settings.toml", environ={})
    assert {name: keys for name, keys in loaded.tables.items() if keys} == {}


def test_settings_toml_uncommented_is_the_defaults(make: types.ModuleType, tmp_path: Path) -> None:
    text = re.sub(r"(?m)^#(?! |$)", "", (ROOT / "settings.toml").read_text())
    text = re.sub(r"(?m)^#( +\S.*,)$", r"\1", text)  # the lines of a long list
    (tmp_path / "settings.toml").write_text(text)
    loaded = load(tmp_path / "settings.toml", environ={})
    for name, model in make.models().items():
        found, default = loaded.section(name, model), model()
        assert set(loaded.tables[name]) == set(model.model_fields), name
        for key in model.model_fields:
            if (name, key) not in make.SHOWN:
                assert getattr(found, key) == getattr(default, key), f"{name}.{key}"


def test_every_key_says_what_it_means(make: types.ModuleType) -> None:
    for name, model in make.models().items():
        assert model.__doc__, name
        for key, info in model.model_fields.items():
            assert info.description, f"{name}.{key}"


@pytest.mark.parametrize(
    ("file", "site"),
    [
        ("agent.yaml.example", ""),
        ("examples/rental.yaml", ""),
        ("examples/sites.toml", "lab"),
        ("examples/sites.toml", "cluster"),
        ("examples/sites.toml", ""),
    ],
)
def test_an_agent_would_start_with_each_example(file: str, site: str, tmp_path: Path) -> None:
    there = tmp_path / Path(file).name.removesuffix(".example")
    there.write_text((ROOT / "docs" / file).read_text())
    loaded = load(there, environ={"REMOTEGPU_SITE": site})
    for name, model in CORE_SECTIONS.items():
        loaded.section(name, model)
    for info in discover(loaded.section("plugins", PluginsSection)):
        if info.settings:
            loaded.section(info.name, info.settings)
    assert loaded.source("server_client.url").startswith(str(there))
    assert loaded.warnings == ()


def test_the_page_on_migrating_names_what_each_older_name_is_now() -> None:
    page = (ROOT / "docs/migrating.md").read_text()
    variables = {where: name for name, where in LEGACY.items()}
    for name, (table, key) in NAMES.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert f"`[{table}] {key}`" in row
        assert variables.get((table, key), "") in row
