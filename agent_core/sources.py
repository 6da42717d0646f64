"""Where settings come from: files and environment variables, read as they were written."""

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent_core.errors import SettingsError
from agent_core.nearest import nearest

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
ETC = Path("/etc/remotegpu-agent")
HERE = Path()
NAMES = ("settings.toml", "settings.yaml", "settings.yml", "agent.yaml", "agent.yml")
SECRETS = (".secrets.toml", ".secrets.yaml", ".secrets.yml")  # beside a settings file; win over it
YAML = (".yaml", ".yml")
SITE = "REMOTEGPU_SITE"  # the site whose tables apply, beside those of `default`
DEFAULT = "default"

_ENV_NAME = re.compile(r"([A-Za-z][A-Za-z0-9_]*?)__([A-Za-z][A-Za-z0-9_]*)")
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*\]\s*(?:#.*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One place that settings come from, with its values by table and key."""

    name: str  # for people: a path, or "environment REMOTEGPU_…"
    tables: Mapping[str, Mapping[str, Any]]
    text: str | None = None  # of a TOML file
    lines: Mapping[Any, int] | None = None  # of a YAML file: of each (table, key) and (table, "")
    site: str = ""  # in a file: whose tables these are; "": they stand there without a site

    @property
    def from_file(self) -> bool:
        return self.text is not None or self.lines is not None

    @property
    def typed(self) -> bool:
        """Whether its values have types; else each is text until its field says more."""
        return self.text is not None

    def place(self, table: str, key: str = "") -> str:
        """`path, line 3` where the line can be told, else the name alone."""
        if self.lines is not None:
            line = self.lines.get((table, key))
        else:
            found = self._find(table, key)
            line = found[0] if found else None
        return f"{self.name}, line {line}" if line else self.name

    def written(self, table: str, key: str) -> str | None:
        """The value as it stands in the file, if it is a bare word on one line."""
        found = self._find(table, key)
        return found[1] if found else None

    def _find(self, table: str, key: str) -> tuple[int, str | None] | None:
        """Line and bare value of a key (of the table's header for key ""); None if unsure."""
        current, wanted = "", f"{self.site}.{table}" if self.site else table
        bare = r"(?:([^\s\"'\[{#,]+)\s*(?:#.*)?$)?"
        assigned = re.compile(rf"\s*(['\"]?){re.escape(key)}\1\s*=\s*{bare}")
        for number, line in enumerate((self.text or "").splitlines(), 1):
            if header := _HEADER.fullmatch(line):
                current = re.sub(r"\s", "", header[1])
                if (current == wanted and not key) or current == f"{wanted}.{key}":
                    return number, None
            elif key and current == wanted and (match := assigned.match(line)):
                return number, match[2]
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Everything that was found, the weakest first."""

    layers: tuple[Source, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def read(file: Path | None, environ: Mapping[str, str], known: Collection[str]) -> Sources:
    """Read all sources. A named file must exist; the usual places may be empty.

    `known` are the names of tables; any other table of tables in a file is a site's.
    """
    site = environ.get(SITE, "").strip()
    layers: list[Source] = []
    warnings: list[str] = []
    sites: set[str] = set()
    for path in [file] if file is not None else _usual():
        secrets = [each for name in SECRETS if (each := path.parent / name).is_file()]
        if len(secrets) > 1:
            raise SettingsError(f"{secrets[0]} and {secrets[1]} both exist; keep one of them")
        for each in [path, *secrets]:
            if not (found := _file(each, must_exist=file is not None and each is path)):
                continue
            if each in secrets and (warning := _open_to_others(each)):
                warnings.append(warning)
            layers += [layer for layer in _apart(found, known, sites) if layer.site in _of(site)]
    _check_site(site, sites)
    variables, ignored = _environment(environ)
    return Sources(layers=(*layers, *variables), warnings=(*warnings, *ignored))


def _of(site: str) -> frozenset[str]:
    return frozenset({"", DEFAULT, site})


def _usual() -> list[Path]:
    """One file of each usual place; where there is none, a name for the secrets to be beside."""
    paths = []
    for folder in (ETC, HERE):
        there = [path for name in NAMES if os.path.lexists(path := folder / name)]
        if len(there) > 1:
            raise SettingsError(
                f"{there[0]} and {there[1]} both exist; keep one of them, or name one by --settings"
            )
        paths += there or [folder / NAMES[0]]
    return paths


def _check_site(site: str, sites: set[str]) -> None:
    if site and site not in sites | {DEFAULT}:
        known = ", ".join(sorted(sites)) or "none"
        raise SettingsError(
            f"environment {SITE}={site}: no settings file has tables of that site"
            f"{nearest(site, sites)}; the sites are: {known}. Mend the name, or write a table such "
            f"as [{site}.agent]"
        )


def _apart(source: Source, known: Collection[str], sites: set[str]) -> Iterator[Source]:
    """A file's plain tables, then those of `default`, then each site's."""
    plain: dict[str, Mapping[str, Any]] = {}
    own: dict[str, Mapping[str, Any]] = {}
    for name, table in source.tables.items():
        inner = list(table.values())
        is_site = name not in known and inner and all(isinstance(each, dict) for each in inner)
        (own if is_site else plain)[name] = table
    yield replace(source, tables=plain)
    for name in sorted(own, key=lambda each: each != DEFAULT):
        if name != DEFAULT:
            sites.add(name)
        lines = source.lines
        if lines is not None:  # under (site, table, key): as if the table stood alone
            lines = {at[1:]: line for at, line in lines.items() if at[0] == name and len(at) > 2}
        for inner_name in own[name]:
            if inner_name not in known:
                apart = replace(source, tables={}, lines=lines, site=name)
                raise SettingsError(
                    f"{apart.place(inner_name)}: nothing here knows the table [{name}.{inner_name}]"
                    f"{nearest(inner_name, known)}; mend its name, or install the plugin that it "
                    "is meant for"
                )
        yield replace(source, tables=own[name], lines=lines, site=name)


def _file(path: Path, *, must_exist: bool) -> Source | None:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        if not must_exist:
            return None
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
    text = _decoded(path, raw)
    if path.suffix.lower() in YAML:
        return _yaml(path, text)
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise SettingsError(f"{path} is not TOML: {error}; mend that line") from None
    _check_tables(path, tables)
    return Source(name=str(path), tables=tables, text=text)


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SettingsError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def _yaml(path: Path, text: str) -> Source:
    from agent_core import older_settings, yaml_files  # noqa: PLC0415 (a library for these alone)

    read = yaml_files.read(path, text)
    if older_settings.is_older(read.values):
        tables, lines = older_settings.translated(path, read)
        return Source(name=str(path), tables=tables, lines=lines)
    _check_tables(path, read.values)
    lines = {at if len(at) > 1 else (*at, ""): line for at, line in read.lines.items()}
    lines |= {(*at, ""): line for at, line in read.lines.items() if len(at) == 2}  # of a site
    return Source(name=str(path), tables=read.values, lines=lines)


def _check_tables(path: Path, tables: Mapping[str, Any]) -> None:
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise SettingsError(
                f"{path}: {name} stands outside of a table; put it under a header such as [agent]"
            )


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
