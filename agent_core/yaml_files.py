"""Settings files in YAML, read as they were written: a value is text until its field says more.

So none of YAML's own readings apply (`yes` a truth value, `010` eight, `1:30` ninety).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from agent_core.errors import SettingsError

DEPTH = 16  # mappings and lists in each other
_PLAIN = "tag:yaml.org,2002:"
_TAGS = frozenset(
    _PLAIN + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A file's values, and the line of each key by its dotted path."""

    values: dict[str, Any]
    lines: dict[tuple[str, ...], int]


def read(path: Path, text: str) -> Read:
    """Parse one file. A key without a value is as good as absent. Raises SettingsError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{line}: not YAML: {error.problem}; mend that line") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
    if root is None:
        return Read(values={}, lines={})
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError(f"{path}: must be keys with values, such as `agent:` and what is in it")
    reader = _Reader(path)
    values = reader.mapping(root, ())
    return Read(values=values, lines=reader.lines)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.lines: dict[tuple[str, ...], int] = {}
        self._path = path
        self._seen: set[int] = set()

    def mapping(self, node: yaml.MappingNode, at: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, inner in self._pairs(node):
            path = (*at, key.value)
            if path in self.lines:
                raise SettingsError(
                    f"{self._place(key)}: {'.'.join(path)} stands in line {self.lines[path]} "
                    "already; write it once"
                )
            self.lines[path] = key.start_mark.line + 1
            value = self._value(inner, path)
            if value is not None:
                values[key.value] = value
        return values

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        for key, inner in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise SettingsError(f"{self._place(key)}: a key must be a word")
            yield key, inner

    def _value(self, node: yaml.Node, at: tuple[str, ...]) -> Any:
        if len(at) > DEPTH:
            raise SettingsError(f"{self._place(node)}: nested too deep")
        if id(node) in self._seen:
            raise SettingsError(
                f"{self._place(node)}: anchors and aliases are not read; write the value again"
            )
        self._seen.add(id(node))
        if node.tag not in _TAGS:
            raise SettingsError(
                f"{self._place(node)}: the tag {node.tag} is not read; leave it out"
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            items = [self._value(item, (*at, str(i))) for i, item in enumerate(node.value)]
            return ["" if item is None else item for item in items]
        absent = node.tag == f"{_PLAIN}null" and cast("yaml.ScalarNode", node).style is None
        return None if absent else node.value

    def _place(self, node: yaml.Node) -> str:
        return f"{self._path}, line {node.start_mark.line + 1}"
