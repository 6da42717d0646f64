"""Where settings come from: files and environment variables, read as they were written."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_core.errors import SettingsError

PREFIX = "REMOTEGPU_"
LEGACY = {  # the older agent's names; no other AGENT_… variable is ours
    "AGENT_PORT": ("local_api", "port"),
    "AGENT_DB_PATH": ("sqlite_store", "path"),
    "AGENT_MAX_WORKERS": ("agent", "max_workers"),
    "SERVER_URL": ("server_client", "url"),
    "AGENT_ID": ("agent", "id"),
    "MACHINE_ID": ("agent", "machine_id"),
    "AGENT_TOKEN": ("server_client", "token"),
}
FILE_LIMIT = 2**20  # bytes of one settings file
ETC = Path("/etc/remotegpu-agent/settings.toml")
HERE = Path("settings.toml")
SECRETS = ".secrets.toml"  # beside a settings file; wins over it

_ENV_NAME = re.compile(r"([A-Za-z][A-Za-z0-9_]*?)__([A-Za-z][A-Za-z0-9_]*)")
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(?:#.*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One place that settings come from, with its values by table and key."""

    name: str  # for people: a path, or "environment REMOTEGPU_…"
    tables: Mapping[str, Mapping[str, Any]]
    text: str | None = None  # of a file; None: an environment variable, whose value is text

    @property
    def from_file(self) -> bool:
        return self.text is not None

    def place(self, table: str, key: str = "") -> str:
        """`path, line 3` where the line can be told, else the name alone."""
        found = self._find(table, key)
        return f"{self.name}, line {found[0]}" if found else self.name

    def written(self, table: str, key: str) -> str | None:
        """The value as it stands in the file, if it is a bare word on one line."""
        found = self._find(table, key)
        return found[1] if found else None

    def _find(self, table: str, key: str) -> tuple[int, str | None] | None:
        """Line and bare value of a key (of the table's header for key ""); None if unsure."""
        current = ""
        bare = r"(?:([^\s\"'\[{#,]+)\s*(?:#.*)?$)?"
        assigned = re.compile(rf"\s*(['\"]?){re.escape(key)}\1\s*=\s*{bare}")
        for number, line in enumerate((self.text or "").splitlines(), 1):
            if header := _HEADER.fullmatch(line):
                current = header[1]
                if current == table and not key:
                    return number, None
            elif key and current == table and (match := assigned.match(line)):
                return number, match[2]
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Everything that was found, the weakest first."""

    layers: tuple[Source, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def read(file: Path | None, environ: Mapping[str, str]) -> Sources:
    """Read all sources. A named file must exist; the usual places may be empty."""
    files = [file] if file is not None else [ETC, HERE]
    layers: list[Source] = []
    warnings: list[str] = []
    for path in files:
        layers += _file(path, must_exist=file is not None)
        secrets = _file(path.parent / SECRETS, must_exist=False)
        warnings += [w for s in secrets if (w := _open_to_others(Path(s.name)))]
        layers += secrets
    found, ignored = _environment(environ)
    return Sources(layers=(*layers, *found), warnings=(*warnings, *ignored))


def _file(path: Path, *, must_exist: bool) -> list[Source]:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        if not must_exist:
            return []
        raise SettingsError(
            f"there is no settings file {path}; name one that exists, or leave --settings out"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"the settings file {path} cannot be read: {error.strerror}; "
            "make it readable for this user, or name another by --settings"
        ) from None
    if len(raw) > FILE_LIMIT:
        raise SettingsError(f"the settings file {path} is larger than {FILE_LIMIT} bytes")
    text, tables = _parse(path, raw)
    return [Source(name=str(path), tables=tables, text=text)]


def _parse(path: Path, raw: bytes) -> tuple[str, dict[str, dict[str, Any]]]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SettingsError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise SettingsError(f"{path} is not TOML: {error}; mend that line") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise SettingsError(
                f"{path}: {name} stands outside of a table; put it under a header such as [agent]"
            )
    return text, tables


def _open_to_others(path: Path) -> str | None:
    mode = path.stat().st_mode & 0o777
    if not mode & 0o077:
        return None
    return f"{path} can be read by others (mode {mode:04o}); chmod 600 {path}"


def _environment(environ: Mapping[str, str]) -> tuple[list[Source], list[str]]:
    """Legacy names first, so that our own win; names without `__` are no settings."""
    layers: list[Source] = []
    warnings: list[str] = []
    for name, (table, key) in LEGACY.items():
        value = environ.get(name, "")
        if name == "AGENT_PORT" and "://" in value:
            warnings.append(
                f"AGENT_PORT={value} is not ours (Kubernetes sets such a name for a service): "
                "ignored; set REMOTEGPU_LOCAL_API__PORT to choose the port"
            )
        elif value:
            layers.append(_variable(name, table, key, value))
    seen: dict[tuple[str, str], str] = {}
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or "__" not in name:
            continue
        match = _ENV_NAME.fullmatch(name[len(PREFIX) :])
        if match is None or "__" in match[2]:
            raise SettingsError(
                f"environment {name} is no setting; a setting is {PREFIX}TABLE__KEY, "
                f"such as {PREFIX}AGENT__MAX_WORKERS"
            )
        table, key = match[1].lower(), match[2].lower()
        if other := seen.get((table, key)):
            raise SettingsError(f"environment {other} and {name} are the same setting; unset one")
        seen[table, key] = name
        layers.append(_variable(name, table, key, environ[name]))
    return layers, warnings


def _variable(name: str, table: str, key: str, value: str) -> Source:
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise SettingsError(f"environment {name} is not UTF-8; set it anew") from None
    return Source(name=f"environment {name}", tables={table: {key: value}})
