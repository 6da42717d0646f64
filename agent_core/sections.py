"""The types that settings are made of, and core's own tables with their defaults and bounds."""

import math
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", re.ASCII)
LONGEST = 366 * 86400.0  # seconds; the upper bound of every duration that names no other


class Section(BaseModel):
    """One table of the settings: frozen, an unknown key is an error, inputs stay out of errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )


def _seconds(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a duration is seconds or text such as 30s, 5m, 2h, 1d")
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError("a duration is seconds or text such as 30s, 5m, 2h, 1d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _as_text(value: object) -> object:
    """A number or a truth value becomes the text that a person would have written."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and math.isfinite(value):
        return repr(value)
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a text cannot hold a NUL")
    return value


def _identifier(value: str) -> str:
    if not re.fullmatch(r"[!-~]{0,128}", value):  # it travels in HTTP headers and in paths
        raise ValueError("an id is at most 128 printable ASCII characters without blanks")
    return value


def _path(value: Path) -> Path:
    return Path(os.path.abspath(value.expanduser()))


Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=LONGEST, allow_inf_nan=False)]
"""Seconds: a number, or text such as "30s", "5m", "2h", "1d"."""

Text = Annotated[str, BeforeValidator(_as_text), AfterValidator(_no_nul)]
"""Always text: an unquoted 12345678 stays "12345678"."""

SecretText = Annotated[Text, Field(repr=False, json_schema_extra={"secret": True})]
"""A Text that is shown neither in a repr nor in an error.

Logs mask it if its key has `token`, `password` or `secret` in it."""

Identifier = Annotated[Text, AfterValidator(_identifier)]
"""The name of an agent or a machine; empty where none was given."""

AnyPath = Annotated[Path, AfterValidator(_path)]
"""A path; `~` is the home directory, a relative one starts where the program was started."""


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def default_state_dir() -> Path:
    """Where an agent keeps its state unless it is told otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/remotegpu-agent")
    return Path("~/.local/state/remotegpu-agent").expanduser()


class AgentSection(Section):
    """Who this agent is, where it keeps things, how much it runs at once."""

    id: Identifier = ""
    """Its name towards the server; empty: made once and kept in the state directory."""
    machine_id: Identifier = ""
    """The machine's name towards the server; empty: made once and kept likewise."""
    state_dir: AnyPath = Field(default_factory=default_state_dir)
    """On disk, this agent's alone: database, ids, scripts, output of running tasks."""
    runtime_dir: Annotated[AnyPath | None, BeforeValidator(_empty_is_none)] = None
    """On tmpfs: sockets and journals. Empty: the first of RUNTIME_DIRECTORY, XDG_RUNTIME_DIR,
    /run and /dev/shm that is a tmpfs and writable, else the state directory."""
    max_workers: int = Field(default=2, ge=1, le=1024)
    """How many tasks run at once."""
    arm_ahead: int = Field(default=16, ge=0, le=1000)
    """Starts that are stored while no slot is free, so that the next task begins at once when one
    is. 0: each is stored when its slot is free, which costs a moment of each slot."""
    labels: dict[Text, Text] = Field(default_factory=dict, max_length=64)
    """What this machine is, as names and values: a task that asks for labels runs only where all
    of them are."""


class ShutdownSection(Section):
    """How the agent ends."""

    grace: Duration = Field(default=30.0, le=3600)
    """How long waiting results may still be sent after the first signal."""


class PluginsSection(Section):
    """Which plugins run, and who is asked first."""

    enable: tuple[str, ...] = Field(default=(), max_length=256)
    """Entry points to add; asked before the defaults, in this order."""
    disable: tuple[str, ...] = Field(default=(), max_length=256)
    """Defaults to leave out."""


class LogSection(Section):
    """What the agent says of its work, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are shown."""
    format: Literal["text", "json"] = "text"
    """Text for people, or one JSON object a line."""


class LocalApiSection(Section):
    """The agent's own HTTP API."""

    port: int = Field(default=8090, ge=1, le=65535)
    """Its port on loopback. Read and checked; nothing listens there yet."""


CORE_SECTIONS: dict[str, type[Section]] = {
    "agent": AgentSection,
    "shutdown": ShutdownSection,
    "plugins": PluginsSection,
    "log": LogSection,
    "local_api": LocalApiSection,
}
