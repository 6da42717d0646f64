"""Plugins: which are imported, in which order they are asked, and why a start is refused."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pluggy
import pytest

from agent_core import API_VERSION, PluginContext, PluginError, SettingsError
from agent_core.clock import SystemClock
from agent_core.plugins import DEFAULTS, PluginInfo, build, discover
from agent_core.sections import PluginsSection
from agent_core.settings import Loaded, load

Install = Callable[..., None]
GOOD = """
    @hookimpl
    async def validate(self, task, launch):
        return None
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with one plugin where Python finds it, as an installer would."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def write(
        name: str, body: str = GOOD, *, head: str = "", package: str = "", cls: str = ""
    ) -> None:
        package = package or f"acme-{name.replace('_', '-')}"
        module = f"acme_{package.replace('-', '_')}_{name}"
        text = f"from agent_core import Section, Text, hookimpl\n{head}\nclass Plugin:\n"
        text += "    def __init__(self, settings, context):\n"
        text += "        self.given = settings, context\n" + body
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{package.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        entry = f"[agent_core]\n{name} = {module}:{cls or 'Plugin'}\n"
        (info / "entry_points.txt").write_text(entry)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("acme_"):
            del sys.modules[name]


def only(*names: str) -> PluginsSection:
    return PluginsSection(enable=names, disable=DEFAULTS)


def refusal(*names: str) -> str:
    with pytest.raises(PluginError) as caught:
        discover(only(*names))
    return str(caught.value)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., pluggy.PluginManager]:
    """Builds what is enabled, with settings from a file."""

    def make(infos: list[PluginInfo], text: str = "") -> pluggy.PluginManager:
        (tmp_path / "named.toml").write_text(text)
        loaded = load(tmp_path / "named.toml", {}) if text else Loaded()
        return build(infos, loaded, context)

    def context(name: str) -> PluginContext:
        return PluginContext(
            agent_id="a",
            machine_id="m",
            state_dir=tmp_path,
            runtime_dir=tmp_path,
            max_workers=1,
            clock=SystemClock(),
            log=name,
        )

    return make


# --- which, and in which order


def test_enabled_ones_come_first_in_the_order_written_then_the_defaults(install: Install) -> None:
    install("zebra")
    install("ape")
    enable = ("zebra", "command_policy", "ape")
    left_out = tuple(name for name in DEFAULTS if name != "command_policy")
    infos = discover(PluginsSection(enable=enable, disable=left_out))
    assert [info.name for info in infos] == ["zebra", "command_policy", "ape"]
    infos = discover(PluginsSection(enable=("ape",), disable=left_out))
    assert [info.name for info in infos] == ["ape", "command_policy"]


def test_a_plugin_is_asked_in_that_order(
    install: Install, made: Callable[..., pluggy.PluginManager]
) -> None:
    for name in ("one", "two", "three"):
        install(name)
    manager = made(discover(only("two", "three", "one")))
    asked = [impl.plugin_name for impl in reversed(manager.hook.validate.get_hookimpls())]
    assert asked == ["two", "three", "one"]


def test_installed_is_not_enabled_and_is_not_even_imported(install: Install) -> None:
    install("bomb", head="raise SystemExit('imported')")
    install("good")
    assert [info.name for info in discover(only("good"))] == ["good"]
    assert "acme_acme_bomb_bomb" not in sys.modules


def test_a_disabled_default_is_not_imported(install: Install) -> None:
    install("good")
    loaded = "agent_core_plugins.sqlite_store" in sys.modules
    discover(only("good"))
    assert ("agent_core_plugins.sqlite_store" in sys.modules) is loaded


def test_what_is_told_of_a_plugin(install: Install) -> None:
    body = """
    class Settings(Section):
        colour: Text = "red"
    @hookimpl
    def execute(self, launch): return None
    @hookimpl
    async def store(self): return None
    def helper(self): return None
"""
    install("painter", body, package="acme-paint")
    (info,) = discover(only("painter"))
    assert (info.name, info.distribution, info.version) == ("painter", "acme-paint", "1.5")
    assert info.hooks == ("store", "execute")
    assert info.settings is not None
    assert info.settings.__name__ == "Settings"


# --- names


def test_an_unknown_name_is_told_with_the_nearest(install: Install) -> None:
    install("bubblewrap")
    message = refusal("buble_wrap")
    assert "plugins.enable names 'buble_wrap'" in message
    assert '(did you mean "bubblewrap"?)' in message


def test_an_unknown_name_to_disable_is_told_too() -> None:
    with pytest.raises(PluginError, match=r"plugins\.disable names 'sincer'.*\"syncer\""):
        discover(PluginsSection(disable=("sincer",)))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (PluginsSection(enable=("syncer", "syncer")), "plugins.enable names 'syncer' twice"),
        (PluginsSection(disable=("syncer", "syncer")), "plugins.disable names 'syncer' twice"),
        (PluginsSection(enable=("syncer",), disable=("syncer",)), "stands in both"),
    ],
)
def test_a_name_stands_once(section: PluginsSection, words: str) -> None:
    with pytest.raises(PluginError) as caught:
        discover(section)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name", ["Upper", "two__parts", "1st", "with-dash", "agent", "plugins", "_x"]
)
def test_a_name_that_could_be_no_settings_table_is_refused(install: Install, name: str) -> None:
    install(name, package="acme-odd")
    assert "plugin " + name + " (acme-odd 1.5): a name is lower-case letters" in refusal(name)


def test_two_packages_with_one_name_are_both_named(install: Install) -> None:
    install("twin", package="acme-left")
    install("twin", package="acme-right")
    message = refusal("twin")
    assert "acme-left" in message
    assert "acme-right" in message


# --- broken ones


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("this is no Python", "SyntaxError"),
    ],
)
def test_one_that_raises_at_import_is_named_with_its_package_and_the_reason(
    install: Install, head: str, reason: str
) -> None:
    install("broken", head=head)
    message = refusal("broken")
    assert "plugin broken (acme-broken 1.5) cannot be imported" in message
    assert reason in message


def test_an_entry_point_to_nothing_is_named(install: Install) -> None:
    install("hollow", cls="Missing")
    assert "plugin hollow (acme-hollow 1.5) cannot be imported" in refusal("hollow")


def test_an_entry_point_to_a_thing_that_cannot_be_called_is_refused(install: Install) -> None:
    install("thing", head="thing = 5", cls="thing")
    assert "neither a class nor a factory" in refusal("thing")


def test_a_version_of_the_interface_that_is_not_ours_is_refused(install: Install) -> None:
    install("late", "    api_versions = {98, 99}\n" + GOOD)
    assert f"knows the plugin interface 98, 99, and this agent has {API_VERSION}" in refusal("late")
    install("fits", f"    api_versions = {{{API_VERSION}}}\n" + GOOD)
    assert len(discover(only("fits"))) == 1


def test_settings_that_are_no_section_are_refused(install: Install) -> None:
    install("loose", "    class Settings: pass\n" + GOOD)
    assert "its Settings must be a subclass of agent_core.Section" in refusal("loose")


def test_a_misspelt_hook_stops_the_start_with_the_nearest(install: Install) -> None:
    install("typo", "    @hookimpl\n    async def validte(self, task, launch): ...\n")
    message = refusal("typo")
    assert "plugin typo (acme-typo 1.5): there is no hook validte" in message
    assert '(did you mean "validate"?)' in message


def test_a_hook_of_a_later_interface_may_be_marked_optional(install: Install) -> None:
    install("early", "    @hookimpl(optionalhook=True)\n    async def dream(self): ...\n" + GOOD)
    (info,) = discover(only("early"))
    assert info.hooks == ("validate",)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("async def execute(self, launch): ...", "execute must be `def`, and is `async def`"),
        ("async def schedule(self): ...", "schedule must be `def`, and is `async def`"),
        ("def validate(self, task, launch): ...", "validate must be `async def`, and is `def`"),
        ("async def claim(self, demand): yield", "claim must be `async def`, and is `def`"),
    ],
)
def test_the_wrong_colour_stops_the_start(install: Install, method: str, words: str) -> None:
    install("painted", f"    @hookimpl\n    {method}\n")
    assert words in refusal("painted")


@pytest.mark.parametrize("option", ["tryfirst", "trylast", "wrapper", "hookwrapper"])
def test_an_option_that_changes_who_is_asked_stops_the_start(install: Install, option: str) -> None:
    install(
        "pushy", f"    @hookimpl({option}=True)\n    async def validate(self, task, launch): ...\n"
    )
    assert "marked with an option that changes who is asked" in refusal("pushy")


def test_an_argument_that_the_hook_does_not_have_stops_the_start(
    install: Install, made: Callable[..., pluggy.PluginManager]
) -> None:
    install("greedy", "    @hookimpl\n    async def validate(self, task, lunch): ...\n")
    with pytest.raises(PluginError, match=r"plugin greedy \(acme-greedy 1\.5\).*lunch"):
        made(discover(only("greedy")))


# --- built


def test_it_is_built_once_with_its_own_settings_and_context(
    install: Install, made: Callable[..., pluggy.PluginManager]
) -> None:
    install("painter", "    class Settings(Section):\n        colour: Text = 'red'\n" + GOOD)
    manager = made(discover(only("painter")), "[painter]\ncolour = 0x10")
    settings, context = manager.get_plugin("painter").given  # type: ignore[union-attr]
    assert settings.colour == "0x10"
    assert context.log == "painter"


def test_one_without_settings_gets_none_and_a_table_for_it_is_an_error(
    install: Install, made: Callable[..., pluggy.PluginManager]
) -> None:
    install("plain")
    infos = discover(only("plain"))
    assert made(infos).get_plugin("plain").given[0] == {}  # type: ignore[union-attr]
    with pytest.raises(SettingsError, match=r"line 2: \[plain\] has no key colour"):
        made(infos, "[plain]\ncolour = 1")


def test_two_agents_build_two_plugins(
    install: Install, made: Callable[..., pluggy.PluginManager]
) -> None:
    install("plain")
    infos = discover(only("plain"))
    assert made(infos).get_plugin("plain") is not made(infos).get_plugin("plain")


def test_wrong_settings_of_a_plugin_stop_the_start(
    install: Install, made: Callable[..., pluggy.PluginManager]
) -> None:
    install("painter", "    class Settings(Section):\n        coats: int = 1\n" + GOOD)
    with pytest.raises(SettingsError, match=r"painter\.coats must be a whole number"):
        made(discover(only("painter")), "[painter]\ncoats = 'two'")


def test_one_that_cannot_be_built_is_named_with_the_reason(
    install: Install, made: Callable[..., pluggy.PluginManager]
) -> None:
    install("frail", "        raise RuntimeError('no licence')\n" + GOOD)
    with pytest.raises(
        PluginError, match=r"frail \(acme-frail 1\.5\) cannot be built: RuntimeError"
    ):
        made(discover(only("frail")))


def test_a_factory_serves_as_a_class_does_and_its_hooks_are_checked_when_it_is_built(
    install: Install, made: Callable[..., pluggy.PluginManager]
) -> None:
    factory = "def make(settings, context): return Plugin(settings, context)"
    install("factory", head=factory, cls="make")
    assert made(discover(only("factory"))).get_plugin("factory") is not None
    install(
        "typo", "    @hookimpl\n    async def clam(self, demand): ...\n", head=factory, cls="make"
    )
    with pytest.raises(PluginError, match=r"there is no hook clam \(did you mean \"claim\"\?\)"):
        made(discover(only("typo")))
