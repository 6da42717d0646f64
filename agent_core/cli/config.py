"""Where the control plane is and which token opens it, for the client commands.

Never from the current directory: a cloned repository could send the token anywhere.
"""

import difflib
import getpass
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent_core.cli.output import note
from agent_core.errors import SettingsError

if TYPE_CHECKING:
    from agent_core.api.client import Client

KEYS = ("url", "token", "user")
USER_LIMIT = 255  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """One control plane."""

    url: str
    token: str


def connect(*, as_json: bool = False, timeout: float = 30.0) -> "Client":
    """The client for the control plane that environment or configuration file name.

    `timeout` is in seconds, for each step of a request. Raises SettingsError.
    """
    connection = find(os.environ, as_json=as_json)
    from agent_core.api.client import Client  # noqa: PLC0415  # httpx costs 100 ms

    return Client(connection.url, connection.token, timeout=timeout)


def find(environ: Mapping[str, str], *, as_json: bool = False) -> Connection:
    """Raises SettingsError if url or token is missing or cannot be right."""
    path = config_file(environ)
    url, token = environ.get("REMOTEGPU_URL", ""), environ.get("REMOTEGPU_TOKEN", "")
    filed = {} if url and token else _read(path, as_json=as_json)
    url = url or filed.get("url", "")
    if not token and url.rstrip("/") == filed.get("url", "").rstrip("/"):
        token = filed.get("token", "")  # a file's token goes to that file's server alone
    if not url:
        raise SettingsError(
            "no control plane is named: set REMOTEGPU_URL and REMOTEGPU_TOKEN, "
            f"or write url and token to {path}"
        )
    if not token:
        raise SettingsError(
            f"there is no token for {url}: set REMOTEGPU_TOKEN, or write url and token to {path}"
        )
    return Connection(url=_checked_url(url), token=_checked_token(token))


def user_name(environ: Mapping[str, str]) -> str:
    """Whose tasks these are: as the configuration file says, else as the system does; "" if none.

    A label for lists, no proof of anything: whoever has the token may name whom they like.
    """
    try:
        said = tomllib.loads(config_file(environ).read_text()).get("user", "")
    except (OSError, ValueError):  # told by whoever needs url and token of that file
        said = ""
    name = said if isinstance(said, str) and said else environ.get("USER", "")
    try:
        name = name or getpass.getuser()
    except (OSError, KeyError, ImportError):  # an id without a name, as in a container
        return ""
    return name[:USER_LIMIT] if name.isprintable() else ""


def config_file(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CONFIG_HOME", "")
    home = (
        Path(base)
        if base.startswith("/")
        else Path(environ.get("HOME") or "~").expanduser() / ".config"
    )
    return home / "remotegpu" / "config.toml"


def _read(path: Path, *, as_json: bool) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and "token" in content:
        note(f"{path} holds a token that others can read; run: chmod 600 {path}", as_json=as_json)
    for key, value in content.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; it may hold url, token and user"
            raise SettingsError(f"{path}: unknown key {key}{hint}")
        if not isinstance(value, str):
            raise SettingsError(f"{path}: {key} must be text in quotes")
    return content


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.username or parts.password or parts.query or parts.fragment:
        raise SettingsError(
            f"{url!r} is no URL of a control plane: write http(s)://HOST[:PORT][/PATH], "
            "with the token apart from it"
        )
    return url.rstrip("/")


def _checked_token(token: str) -> str:
    if not all("!" <= char <= "~" for char in token):
        raise SettingsError("the token holds a space or a character that no HTTP header can carry")
    return token
