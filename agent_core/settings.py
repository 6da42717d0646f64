"""Settings: dynaconf lays the sources over each other, pydantic validates; nobody else loads."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, cast

from dynaconf.base import Settings as Layers
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_json

from agent_core import sources
from agent_core.errors import SettingsError
from agent_core.hookspecs import COMMANDS_GROUP, GROUP
from agent_core.nearest import nearest
from agent_core.sections import (
    CORE_SECTIONS,
    AgentSection,
    Duration,
    LocalApiSection,
    LogSection,
    PluginsSection,
    SecretText,
    Section,
    ShutdownSection,
    Text,
)
from agent_core.sources import Source
from agent_core.values import Written, right

__all__ = [
    "AgentSection",
    "Duration",
    "Loaded",
    "LocalApiSection",
    "LogSection",
    "PluginsSection",
    "SecretText",
    "Section",
    "ShutdownSection",
    "Text",
    "is_secret",
    "known_tables",
    "load",
]

Table = Mapping[str, "Written | Table"]  # a key, or a table in the table
S = TypeVar("S", bound=Section)
_KEY = re.compile(r"(?!dynaconf)[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SECRET_KEY = re.compile(r"token|password|secret", re.IGNORECASE)
_ROOT = "REMOTEGPU"  # in dynaconf's namespace, apart from its own settings
_MOST_ERRORS = 10  # told at once


def load(file: Path | None = None, environ: Mapping[str, str] = os.environ) -> "Loaded":
    """Read every source; a table that nobody installed answers to is an error.

    `file` replaces the search in the current directory and in /etc. Raises SettingsError.
    """
    known = known_tables()
    found = sources.read(file, environ, known)
    for source in found.layers:
        for table, keys in source.tables.items():
            _check_names(source, table, keys, known)
    return Loaded(tables=_merge(found.layers), warnings=found.warnings)


def known_tables() -> frozenset[str]:
    """Core's tables, and one for each installed plugin and command; nothing is imported."""
    names = {e.name for group in (GROUP, COMMANDS_GROUP) for e in entry_points(group=group)}
    return frozenset({*CORE_SECTIONS, *names})


def _check_names(
    source: Source, table: str, keys: Mapping[str, Any], known: frozenset[str]
) -> None:
    if table not in known:
        what = f"the table [{table}]" if source.from_file else f"a table {table}"
        raise SettingsError(
            f"{source.place(table)}: nothing here knows {what}{nearest(table, known)}; "
            "mend its name, or install the plugin that it is meant for"
        )
    for key in keys:
        if not _KEY.fullmatch(key):
            raise SettingsError(f"{source.place(table, key)}: [{table}] has no key {key!r}")


def _merge(layers: Iterable[Source]) -> Mapping[str, Table]:
    """Tables merge and lists replace; the later layer wins."""
    # Without its loaders dynaconf reads neither its own variables (AUTO_CAST_FOR_DYNACONF and
    # others would change what follows) nor runs a dynaconf_hooks.py that lies beside a file.
    merged = Layers(
        dynaconf_skip_loaders=True, dynaconf_skip_validators=True, DOTTED_LOOKUP_FOR_DYNACONF=True
    )
    for layer in layers:
        for table, keys in layer.tables.items():
            for key, value in keys.items():
                for path, leaf in _leaves(key, value):
                    written = Written(value=leaf, source=layer, table=table, key=key)
                    merged.set(f"{_ROOT}.{table}.{path}", written)
    return cast("Mapping[str, Table]", merged.as_dict().get(_ROOT, {}))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A table in a table, key by key; one whose keys are no names is a value of its own."""
    if isinstance(value, dict) and value and all(_KEY.fullmatch(key) for key in value):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
    else:
        yield path, value


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What all sources say together; a table is validated when somebody asks for it."""

    tables: Mapping[str, Table] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()  # to be logged once there is a log

    def section(self, name: str, model: type[S]) -> S:
        """That table as its model. Raises SettingsError naming source, key and what is right."""
        values = {}
        for key, found in self.tables.get(name, {}).items():
            if key not in model.model_fields:
                raise SettingsError(_unknown_key(_first(found), model))
            values[key] = _plain(found, model.model_fields[key])
        try:
            return model.model_validate_json(to_json(values, fallback=str), strict=True)
        except ValidationError as error:
            lines = [self._wrong(name, detail) for detail in error.errors()[:_MOST_ERRORS]]
            raise SettingsError("\n".join(lines)) from None

    def source(self, dotted_key: str) -> str:
        """`default`, the path of a file, or `environment REMOTEGPU_…`."""
        table, _, key = dotted_key.partition(".")
        found = self.tables.get(table, {}).get(key.partition(".")[0])
        return _first(found).source.name if found is not None else "default"

    def place(self, table: str, key: str) -> str:
        """`default`, or where it was written: file and line, or the variable."""
        found = self.tables.get(table, {}).get(key)
        return _first(found).place if found is not None else "default"

    def secrets(self) -> frozenset[str]:
        """Every token and password that was set, so that a log can mask them."""
        return frozenset(
            found.text
            for table in self.tables.values()
            for key, found in table.items()
            if isinstance(found, Written) and is_secret(key) and found.is_scalar
        )

    def _wrong(self, table: str, detail: ErrorDetails) -> str:
        path = [str(part) for part in detail["loc"]]
        found = self.tables.get(table, {}).get(path[0]) if path else None
        written = _first(found) if found is not None else None
        what = right(detail, from_file=written is None or written.source.from_file)
        name = f"{table}.{'.'.join(path)}" if path else f"[{table}]"
        told = f"{name}: {what}" if detail["type"] == "value_error" else f"{name} {what}"
        return f"{written.place}: {told}" if written else told


def is_secret(key: str) -> bool:
    """Whether a setting of this name is shown to nobody."""
    return _SECRET_KEY.search(key) is not None


def _unknown_key(written: Written, model: type[Section]) -> str:
    known = ", ".join(sorted(model.model_fields)) or "no key at all"
    return (
        f"{written.place}: [{written.table}] has no key {written.key}"
        f"{nearest(written.key, model.model_fields)}; it knows {known}"
    )


def _first(found: "Written | Table") -> Written:
    while not isinstance(found, Written):
        found = next(iter(found.values()))
    return found


def _plain(found: "Written | Table", info: FieldInfo) -> Any:
    return found.plain(info) if isinstance(found, Written) else _unwrapped(found)


def _unwrapped(found: "Written | Table") -> Any:
    if isinstance(found, Written):
        return found.value
    return {key: _unwrapped(inner) for key, inner in found.items()}
