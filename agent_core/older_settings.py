"""The older agent's flat `agent.yaml`: what each of its names is here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent_core.errors import SettingsError
from agent_core.nearest import nearest
from agent_core.yaml_files import Read

NAMES: Final[Mapping[str, tuple[str, str]]] = {
    "port": ("local_api", "port"),
    "db_path": ("sqlite_store", "path"),
    "max_workers": ("agent", "max_workers"),
    "server.url": ("server_client", "url"),
    "server.agent_id": ("agent", "id"),
    "server.machine_id": ("agent", "machine_id"),
    "server.token": ("server_client", "token"),
    "server.timeout": ("server_client", "timeout"),
    "poll.interval": ("server_client", "poll_interval"),
    "poll.batch_size": ("server_client", "batch_size"),
    "log.level": ("log", "level"),
    "log.format": ("log", "format"),
    "limits.max_output_size": ("subprocess_executor", "max_output_size"),
    "security.allowed_commands": ("command_policy", "allowed_commands"),
    "security.blocked_patterns": ("command_policy", "blocked_patterns"),
}
# Words of its log library that mean one of ours.
WORDS: Final = {
    ("log", "level"): {"warn": "warning", "fatal": "error", "panic": "error", "trace": "debug"},
    ("log", "format"): {"console": "text", "plain": "text"},
}
_GROUPS: Final = frozenset(name.partition(".")[0] for name in NAMES)
_ONLY_THERE: Final = frozenset({"port", "db_path", "max_workers", "poll", "limits", "security"})


def is_older(values: Mapping[str, Any]) -> bool:
    """Whether a YAML file is laid out as the older agent's: by what ours never has."""
    server = values.get("server")
    about_server = isinstance(server, dict) and any(f"server.{key}" in NAMES for key in server)
    return bool(_ONLY_THERE & set(values)) or about_server


def translated(path: Path, read: Read) -> tuple[dict[str, dict[str, Any]], dict[Any, int]]:
    """Its values by our tables and keys, and the line of each. Raises SettingsError."""
    tables: dict[str, dict[str, Any]] = {}
    lines: dict[Any, int] = {}
    for at, value in _named(read.values):
        name, line = ".".join(at), read.lines[at]
        if name not in NAMES:
            known = ", ".join(NAMES)
            raise SettingsError(
                f"{path}, line {line}: the older agent's settings have no key {name}"
                f"{nearest(name, NAMES)}; they know {known}. Settings of any other kind stand in "
                "tables, such as `agent:` with `max_workers:` in it"
            )
        table, key = NAMES[name]
        words = WORDS.get((table, key), {})
        plain = words.get(value.lower(), value.lower()) if words and type(value) is str else value
        tables.setdefault(table, {})[key] = plain
        lines[table, key] = line
    return tables, lines


def _named(values: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and key in _GROUPS:
            found += [((key, inner), each) for inner, each in value.items()]
        else:
            found.append(((key,), value))
    return found
