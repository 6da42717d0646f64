"""Builds the plugins that the settings name, from their entry points, in the order of asking."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from agent_core.errors import PluginError, RemoteGPUError
from agent_core.hookspecs import API_VERSION, GROUP, Hooks
from agent_core.nearest import nearest
from agent_core.protocols import PluginContext
from agent_core.sections import CORE_SECTIONS, PluginsSection, Section
from agent_core.settings import Loaded

DEFAULTS = (  # what runs unless a site says otherwise; core imports none of them
    "sqlite_store",
    "priority_scheduler",
    "subprocess_executor",
    "server_client",
    "syncer",
    "command_policy",
    "machine_metrics",
)
RESERVED = frozenset(CORE_SECTIONS)  # core's own settings tables
_NAME = re.compile(r"(?!.*__)[a-z][a-z0-9_]*", re.ASCII)


class _NoSettings(Section):
    """The table of a plugin without settings: any key in it is an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginInfo:
    """An enabled plugin, imported but not built."""

    name: str  # of the entry point, the settings table, the logger; stored with tasks
    cls: Callable[..., Any]  # a class, or a factory that is called as one
    distribution: str
    version: str
    settings: type[Section] | None
    hooks: tuple[str, ...]  # in the order of hookspecs.py

    @property
    def label(self) -> str:
        return f"plugin {self.name} ({self.distribution} {self.version})"


def discover(section: PluginsSection) -> list[PluginInfo]:
    """Import what is enabled, and nothing else, in asking order: enable as written, then defaults.

    Raises PluginError that names the plugin, its distribution, and the reason.
    """
    installed: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        installed.setdefault(entry.name, []).append(entry)
    return [_import(name, installed[name]) for name in _chosen(section, installed)]


def _chosen(section: PluginsSection, installed: Mapping[str, Sequence[EntryPoint]]) -> list[str]:
    for key, names in (("enable", section.enable), ("disable", section.disable)):
        for name in names:
            if name not in installed:
                known = ", ".join(sorted(installed)) or "none"
                raise PluginError(
                    f"plugins.{key} names {name!r}, and no installed package brings such a plugin"
                    f"{nearest(name, installed)}; installed are {known}"
                )
            if names.count(name) > 1:
                raise PluginError(f"plugins.{key} names {name!r} twice; write it once")
    for name in section.enable:
        if name in section.disable:
            raise PluginError(f"{name!r} stands in both plugins.enable and plugins.disable")
    defaults = [n for n in DEFAULTS if n not in section.enable and n not in section.disable]
    for name in defaults:
        if name not in installed:
            raise PluginError(
                f"the default plugin {name} is not installed; install remotegpu again, "
                "or put its name into plugins.disable"
            )
    return [*section.enable, *defaults]


def _import(name: str, entries: Sequence[EntryPoint]) -> PluginInfo:
    if len({entry.value for entry in entries}) > 1:
        owners = " and ".join(_owner(entry)[0] for entry in entries)
        raise PluginError(f"plugin {name} is brought by {owners}; uninstall one of them")
    entry = entries[0]
    distribution, version = _owner(entry)
    label = f"plugin {name} ({distribution} {version})"
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise PluginError(
            f"{label}: a name is lower-case letters, digits and single underscores, "
            f"begins with a letter, and is none of {', '.join(sorted(RESERVED))}"
        )
    try:
        cls = entry.load()
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise PluginError(
            f"{label} cannot be imported from {entry.value}: {type(error).__name__}: {error}; "
            "repair that package, or take the plugin out by the [plugins] table"
        ) from error
    if not callable(cls):
        raise PluginError(f"{label}: {entry.value} is neither a class nor a factory")
    _check_version(label, cls)
    return PluginInfo(
        name=name,
        cls=cls,
        distribution=distribution,
        version=version,
        settings=_settings_of(label, cls),
        hooks=_check_hooks(label, cls),
    )


def _owner(entry: EntryPoint) -> tuple[str, str]:
    if entry.dist is None:
        return "unknown package", "?"
    return entry.dist.name, entry.dist.version


def _check_version(label: str, cls: object) -> None:
    versions = getattr(cls, "api_versions", None)
    if versions is not None and API_VERSION not in versions:
        known = ", ".join(map(str, sorted(versions)))
        raise PluginError(
            f"{label} knows the plugin interface {known}, and this agent has {API_VERSION}; "
            "install a version of the plugin that fits"
        )


def _settings_of(label: str, cls: object) -> type[Section] | None:
    model = getattr(cls, "Settings", None)
    if model is None:
        return None
    if isinstance(model, type) and issubclass(model, Section):
        return model
    raise PluginError(f"{label}: its Settings must be a subclass of agent_core.Section")


def _specs() -> dict[str, Callable[..., object]]:
    return {name: spec for name, spec in vars(Hooks).items() if hasattr(spec, f"{GROUP}_spec")}


def _hookimpls(plugin: object) -> Iterator[tuple[str, Callable[..., object], Mapping[str, Any]]]:
    """Hook name, function and options of every method marked @hookimpl."""
    for attribute in dir(plugin):
        try:
            function = inspect.getattr_static(plugin, attribute)
        except AttributeError:
            continue
        options = getattr(function, f"{GROUP}_impl", None)
        if isinstance(options, dict):
            yield options["specname"] or attribute, function, options


def _check_hooks(label: str, plugin: object) -> tuple[str, ...]:
    """The hooks it implements. A misspelt name, the wrong colour or an option stops the start."""
    specs = _specs()
    found = set()
    for name, function, options in _hookimpls(plugin):
        if name not in specs:
            if options["optionalhook"]:
                continue
            raise PluginError(
                f"{label}: there is no hook {name}{nearest(name, specs)}; "
                f"the hooks are {', '.join(specs)}"
            )
        if any(options[o] for o in ("wrapper", "hookwrapper", "tryfirst", "trylast")):
            raise PluginError(
                f"{label}: {name} is marked with an option that changes who is asked; "
                "write a plain @hookimpl, the order comes from plugins.enable"
            )
        wanted = inspect.iscoroutinefunction(specs[name])
        if inspect.iscoroutinefunction(function) is not wanted:
            right, wrong = ("async def", "def") if wanted else ("def", "async def")
            raise PluginError(f"{label}: {name} must be `{right}`, and is `{wrong}`")
        found.add(name)
    return tuple(name for name in specs if name in found)


def build(
    infos: Sequence[PluginInfo], loaded: Loaded, context_for: Callable[[str], PluginContext]
) -> pluggy.PluginManager:
    """Build each plugin with its settings, and register all so that they are asked in order.

    Raises SettingsError or PluginError.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    built = []
    for info in infos:
        section = loaded.section(info.name, info.settings or _NoSettings)
        built.append((info, _make(info, section if info.settings else {}, context_for(info.name))))
    for info, plugin in reversed(built):  # pluggy asks the last one registered first
        try:
            manager.register(plugin, name=info.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            reason = "; ".join(str(error).splitlines())
            raise PluginError(f"{info.label} cannot be registered: {reason}") from None
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"a plugin implements a hook that does not exist: {error}") from None
    return manager


def _make(info: PluginInfo, section: object, context: PluginContext) -> object:
    try:
        plugin = info.cls(section, context)
    except RemoteGPUError:
        raise
    except Exception as error:  # whatever a plugin does when it is built
        raise PluginError(
            f"{info.label} cannot be built: {type(error).__name__}: {error}; "
            "mend its settings, or take it out by the [plugins] table"
        ) from error
    _check_hooks(info.label, plugin)
    return plugin
