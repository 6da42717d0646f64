"""One setting as somebody wrote it: read by its field's type, and what would be right instead."""

import json
import tomllib
import types
import typing
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from agent_core.errors import SettingsError
from agent_core.sources import Source

_COLLECTIONS = (tuple, list, set, frozenset, dict)
_TRUTH = {"true": True, "1": True, "yes": True, "on": True}
_TRUTH |= {"false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Written:
    """A value with its source. Opaque to dynaconf, so that nothing in it is cast or merged."""

    value: Any
    source: Source
    table: str
    key: str

    @property
    def place(self) -> str:
        return self.source.place(self.table, self.key)

    @property
    def is_scalar(self) -> bool:
        return not isinstance(self.value, list | dict)

    @property
    def text(self) -> str:
        """The value as it was written: 0x10 is "0x10", not "16"."""
        if isinstance(self.value, str):
            return self.value
        bare = self.source.written(self.table, self.key)
        if bare is not None and _parsed(bare) == self.value:
            return bare
        if isinstance(self.value, bool):
            return str(self.value).lower()
        raise SettingsError(
            f"{self.place}: {self.table}.{self.key} is text; put it in quotes, so that it stays "
            "as it is written"
        )

    def plain(self, info: FieldInfo) -> Any:
        """The value as TOML would have it; what the environment says is text until here."""
        kind = _kind(info.annotation)
        if not isinstance(self.value, str) and not self.source.typed:  # a list or a table of YAML
            return self.value
        if self.source.typed:
            return self.text if kind is str and self.is_scalar else self.value
        if kind in _COLLECTIONS and not self.source.from_file:
            return _collection(self.value)
        if kind in (int, float, bool):
            return _scalar(self.value.strip(), kind)
        return self.value


def _parsed(bare: str) -> Any:
    try:
        return tomllib.loads(f"value = {bare}")["value"]
    except tomllib.TOMLDecodeError:
        return None


def _kind(annotation: Any) -> Any:
    """The type behind Annotated and `| None`."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return _kind(inner[0]) if len(inner) == 1 else annotation
    return typing.get_origin(annotation) or annotation


def _scalar(text: str, kind: type) -> Any:
    if kind is bool:
        return _TRUTH.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text  # the model says what would be right


def _collection(text: str) -> Any:
    """A JSON or TOML array or table, or words between commas."""
    if not text.lstrip().startswith(("[", "{")):
        return [word.strip() for word in text.split(",") if word.strip()]
    for read in (json.loads, lambda value: tomllib.loads(f"value = {value}")["value"]):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text


def right(detail: ErrorDetails, *, from_file: bool) -> str:
    """What would be right, in the words of a settings file. Never repeats what was given."""
    words = {
        "int": "must be a whole number",
        "float": "must be a number",
        "bool": "must be true or false",
        "string": "must be text, in quotes",
        "path": "must be a path, in quotes",
        "tuple": 'must be a list, such as ["a", "b"]',
        "list": 'must be a list, such as ["a", "b"]',
    }
    kind, _, what = detail["type"].partition("_")
    if kind in words and what in ("type", "parsing", "from_float"):
        quoted = from_file and kind in ("int", "float", "bool") and isinstance(detail["input"], str)
        return words[kind] + (", without quotes" if quoted else "")
    if detail["type"] in ("missing", "extra_forbidden"):
        return "must be set" if kind == "missing" else "is no key that is known here"
    message = detail["msg"].removeprefix("Value error, ")
    return message.replace("Input should be", "must be").replace(" should ", " must ")
