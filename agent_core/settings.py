"""Settings: dynaconf lays the sources over each other, pydantic validates; nobody else loads."""

import difflib
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from dynaconf import Dynaconf
from dynaconf.loaders.base import SourceMetadata
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_json

from agent_core import sources
from agent_core.errors import SettingsError
from agent_core.hookspecs import GROUP
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
    "load",
    "nearest",
]

COMMANDS_GROUP = "agent_core.commands"
S = TypeVar("S", bound=Section)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def load(file: Path | None = None, environ: Mapping[str, str] = os.environ) -> "Loaded":
    """Read every source; a table that nobody installed answers to is an error.

    `file` replaces the search in the current directory and in /etc. Raises SettingsError.
    """
    found = sources.read(file, environ)
    known = known_tables()
    for source in found.layers:
        for table, keys in source.tables.items():
            _check_names(source, table, keys, known)
    return Loaded(tables=_merge(found.layers), layers=found.layers, warnings=found.warnings)


def known_tables() -> frozenset[str]:
    """Core's tables, and one for each installed plugin and command; nothing is imported."""
    names = {e.name for group in (GROUP, COMMANDS_GROUP) for e in entry_points(group=group)}
    return frozenset({*CORE_SECTIONS, *names})


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` for the known name that is most like it, else nothing."""
    close = difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


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
        if not _NAME.fullmatch(key) or key.startswith("dynaconf"):
            raise SettingsError(f"{source.place(table, key)}: [{table}] has no key {key!r}")


def _merge(layers: Iterable[Source]) -> Mapping[str, Mapping[str, Any]]:
    """Tables merge and lists replace, the later layer wins. Values stay as they were written."""
    merged = Dynaconf(
        settings_files=[], core_loaders=[], loaders=[], environments=False, load_dotenv=False
    )
    # After the start, or a variable AUTO_CAST_FOR_DYNACONF would win: "@json 1" is a fine token.
    merged.set("AUTO_CAST_FOR_DYNACONF", False)
    tables: set[str] = set()
    for layer in layers:
        where = SourceMetadata("file" if layer.from_file else "environment", layer.name)
        for table, keys in layer.tables.items():
            tables.add(table)
            for key, value in keys.items():
                merged.set(f"{table}.{key}", value, loader_identifier=where)
    everything = merged.as_dict()
    return {table: everything.get(table.upper(), {}) for table in tables}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What all sources say together; a table is validated when somebody asks for it."""

    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    layers: tuple[Source, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()  # to be logged once there is a log

    def section(self, name: str, model: type[S]) -> S:
        """That table as its model. Raises SettingsError naming source, key and what is right."""
        values = {}
        for key, value in self.tables.get(name, {}).items():
            if key not in model.model_fields:
                raise SettingsError(self._unknown_key(name, key, model))
            layer = self._layer(name, key)
            values[key] = _plain(value, model.model_fields[key], layer, name, key)
        try:
            return model.model_validate_json(to_json(values, fallback=str), strict=True)
        except ValidationError as error:
            lines = [self._wrong(name, detail, model) for detail in error.errors()[:10]]
            raise SettingsError("\n".join(lines)) from None

    def source(self, dotted_key: str) -> str:
        """`default`, the path of a file, or `environment REMOTEGPU_…`."""
        layer = self._layer(*dotted_key.split(".", 1))
        return layer.name if layer else "default"

    def _layer(self, table: str, key: str = "") -> Source | None:
        for layer in reversed(self.layers):
            if key in layer.tables.get(table, {}):
                return layer
        return None

    def _place(self, table: str, key: str) -> str:
        layer = self._layer(table, key)
        return layer.place(table, key) if layer else f"[{table}]"

    def _unknown_key(self, table: str, key: str, model: type[Section]) -> str:
        hint = nearest(key, model.model_fields)
        known = ", ".join(sorted(model.model_fields)) or "none"
        return f"{self._place(table, key)}: [{table}] has no key {key}{hint}; it knows {known}"

    def _wrong(self, table: str, detail: ErrorDetails, model: type[Section]) -> str:
        path = [str(part) for part in detail["loc"]]
        key = path[0] if path else ""
        name = f"{table}.{'.'.join(path)}" if path else f"[{table}]"
        return f"{self._place(table, key)}: {name} {_right(detail)}"


def _right(detail: ErrorDetails) -> str:
    """What would be right, in the words of a settings file."""
    words = {
        "int_type": "must be a whole number, without quotes",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number, without quotes",
        "bool_type": "must be true or false, without quotes",
        "string_type": "must be text, in quotes",
        "tuple_type": 'must be a list, such as ["a", "b"]',
        "list_type": 'must be a list, such as ["a", "b"]',
        "missing": "must be set",
        "path_type": "must be a path, in quotes",
    }
    kind = detail["type"]
    if kind in words:
        return words[kind]
    message = detail["msg"].removeprefix("Value error, ")
    return message.replace("Input should be", "must be").replace("String should", "must")


def _kind(annotation: Any) -> Any:
    """The type behind Annotated and `| None`."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return _kind(inner[0]) if len(inner) == 1 else annotation
    return typing.get_origin(annotation) or annotation


def _plain(value: Any, info: FieldInfo, layer: Source | None, table: str, key: str) -> Any:
    """A value as TOML would have it: text of the environment is read by its field's type."""
    kind = _kind(info.annotation)
    if layer is not None and layer.from_file:
        if kind is str and isinstance(value, bool | int | float):  # as written: 0x10, 1e5
            return layer.written(table, key) or value
        return value
    if not isinstance(value, str):
        return value
    if kind in (tuple, list, set, frozenset, dict):
        return _collection(value)
    if kind in (int, float, bool):
        return _scalar(value.strip(), kind)
    return value


def _scalar(text: str, kind: type) -> Any:
    try:
        if kind is bool:
            words = {"true": True, "1": True, "yes": True, "on": True}
            words |= {"false": False, "0": False, "no": False, "off": False}
            return words.get(text.lower(), text)
        return kind(text)
    except ValueError:
        return text  # the model says what would be right


def _collection(text: str) -> Any:
    """A TOML or JSON array or table, or words between commas."""
    if text.lstrip().startswith(("[", "{")):
        for read in (json.loads, lambda value: tomllib.loads(f"value = {value}")["value"]):
            try:
                return read(text)
            except ValueError:
                continue
        return text
    return [word.strip() for word in text.split(",") if word.strip()]
