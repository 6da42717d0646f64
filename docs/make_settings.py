"""Writes settings.toml and docs/settings.md from the models that validate: run `make docs`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from agent_control_plane.settings import ServerSettings
from agent_core import Section, sections
from agent_core.plugins import discover
from agent_core.sections import CORE_SECTIONS, PluginsSection
from agent_core.sources import LEGACY, PREFIX

ROOT = Path(__file__).parent.parent
SHOWN = {  # defaults that depend on who starts the program: one of them, and a word on others
    ("agent", "state_dir"): (
        "~/.local/state/remotegpu-agent",
        "Started as root: /var/lib/remotegpu-agent.",
    ),
    ("server", "database"): (
        "sqlite:////var/lib/remotegpu-server/server.db",
        "Not started as root: ~/.local/share/remotegpu-server/server.db.",
    ),
}

TOML_HEAD = """\
# Every setting of remotegpu with its default. Take the # away from what you change.
#
# Read from ./settings.toml, then /etc/remotegpu-agent/settings.toml (what stands here wins), or
# from the file that --settings names; a .secrets.toml beside each wins over it. The environment
# wins over all files: [agent] max_workers is REMOTEGPU_AGENT__MAX_WORKERS there. For several sites
# in one file write [default.agent], [site_a.agent] and choose by REMOTEGPU_SITE=site_a.
# A duration is seconds or text: "30s", "5m", "2h", "1d".
"""

PAGE_HEAD = """\
# Settings

*Written by `make docs` from the models that validate; change those.*

## Where a value comes from

The first of these that has a key decides it:

1. the environment: `REMOTEGPU_TABLE__KEY`, such as `REMOTEGPU_AGENT__MAX_WORKERS=4`
2. `./.secrets.toml`, then `./settings.toml`
3. `/etc/remotegpu-agent/.secrets.toml`, then `/etc/remotegpu-agent/settings.toml`
4. the defaults below

In place of `settings.toml` there may be `settings.yaml`, or the older agent's `agent.yaml`
([migrating.md](migrating.md)), and `.secrets.yaml` in place of `.secrets.toml`; two of them in one
directory are an error. `remotegpu config` shows every value with the file and line that it comes
from, and `remotegpu config check FILE` says whether an agent would start with a file.

`--settings FILE` names a file that takes the place of 2 and 3, with the `.secrets.toml` beside it;
it must exist. Tables of several files are merged key by key; a list replaces the other list, so a
site can narrow what a file allows. Keep tokens in `.secrets.toml`, mode 0600.

**Several sites in one file.** `[default.agent]` is the same as `[agent]`; `[site_a.agent]` holds
where `REMOTEGPU_SITE` is `site_a`, over the tables of `default` in the same file. Names of tables
are checked whichever site is chosen; one of which no file has a table stops the start.

**YAML** is read as it is written: `010`, `1:30`, `yes` and `1e5` are those letters wherever text is
meant, a key that stands twice is an error, and anchors and tags are not read.

A misspelt table or key, a wrong type and a value out of bounds stop the start; the message names
the file and line (or the variable), the key, and what would be right. A table is known if it is
core's or an installed plugin's of that name, and it is checked when that plugin is enabled.

- **Durations** are seconds (`30`, `0.5`) or text: `"250ms"`, `"30s"`, `"5m"`, `"2h"`, `"1d"`.
- **Texts** such as ids and tokens stay as they are written, also without quotes: `12345678`, `1e5`,
  `0x10` and `true` are those letters. Nothing in them is interpreted.
- **Lists** in the environment are a TOML or JSON array, or words between commas:
  `REMOTEGPU_PLUGINS__ENABLE=bubblewrap,audit`. Truth values there are true or false, yes or no,
  on or off, 1 or 0.
- Names of the environment may be written in either case. Names without `__`, such as
  `REMOTEGPU_URL` and `REMOTEGPU_TOKEN`, are no settings: the client commands read those.

The older agent's variables still count, after our own and before any file:
{legacy}.
No other `AGENT_…` variable is read, and an `AGENT_PORT` such as `tcp://…`, which Kubernetes sets,
is ignored with a warning.
"""


def models() -> dict[str, type[Section]]:
    """Every table that this project brings, in the order of the documentation."""
    found = dict(CORE_SECTIONS)
    found |= {i.name: i.settings for i in discover(PluginsSection()) if i.settings is not None}
    found["server"] = ServerSettings
    return {name: model for name, model in found.items() if model.model_fields}


def toml(value: Any) -> str:
    """A default as TOML."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return str(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False)


def default(table: str, key: str, info: FieldInfo) -> str:
    shown = SHOWN.get((table, key))
    return toml(shown[0] if shown else info.get_default(call_default_factory=True))


def words(info: FieldInfo) -> str:
    """Type and bounds of a key."""
    low = [m.ge for m in info.metadata if hasattr(m, "ge")]
    high = [m.le for m in info.metadata if hasattr(m, "le")]
    span = f", {toml(max(low))} to {toml(min(high))}" if low and high else ""
    if any(getattr(m, "func", None) is sections._seconds for m in info.metadata):
        return "duration" + (span if len(low) + len(high) > 2 else "")
    if get_origin(info.annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(info.annotation))
    if get_origin(info.annotation) is tuple:
        return "list of texts"
    if get_origin(info.annotation) is dict:
        return "table of texts"
    known = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return known.get(info.annotation or str, "path") + span


def meaning(table: str, key: str, info: FieldInfo) -> str:
    text = re.sub(r"\s+", " ", info.description or "")
    shown = SHOWN.get((table, key))
    return f"{text} {shown[1]}" if shown else text


def settings_toml() -> str:
    return TOML_HEAD + "".join(_toml_table(name, model) for name, model in models().items())


def _toml_table(name: str, model: type[Section]) -> str:
    lines = ["", f"[{name}]  # {_first_sentence(model)}"]
    for key, info in model.model_fields.items():
        lines += [f"# {line}" for line in _wrapped(meaning(name, key, info), 96)]
        lines += _assigned(key, default(name, key, info))
    return "\n".join(lines) + "\n"


def _assigned(key: str, value: str) -> list[str]:
    line = f"#{key} = {value}"
    if len(line) <= 98:
        return [line]
    inner = [f"#  {part}," for part in _wrapped(value.strip("[]"), 92)]
    return [f"#{key} = [", *(part.replace(",,", ",") for part in inner), "#]"]


def _wrapped(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def _first_sentence(model: type[Section]) -> str:
    return re.sub(r"\s+", " ", model.__doc__ or "").split(". ")[0].rstrip(".")


def settings_page() -> str:
    older = ", ".join(f"`{name}` = `{t}.{k}`" for name, (t, k) in LEGACY.items())
    head = PAGE_HEAD.replace("{legacy}", "\n".join(_wrapped(older, 99)))
    return head + "".join(_page_table(name, model) for name, model in models().items())


def _page_table(name: str, model: type[Section]) -> str:
    doc = re.sub(r"\s+", " ", model.__doc__ or "")
    lines = ["", f"## [{name}]", "", doc, "", "| key | default | what it is |", "|---|---|---|"]
    for key, info in model.model_fields.items():
        text = f"{words(info)}. {meaning(name, key, info)}".replace("|", "\\|")
        lines.append(f"| `{key}` | `{default(name, key, info)}` | {text} |")
    prefix = f"{PREFIX}{name.upper()}__"
    return "\n".join([*lines, "", f"Environment: `{prefix}` and the key, in capitals.", ""])


if __name__ == "__main__":
    (ROOT / "settings.toml").write_text(settings_toml())
    (ROOT / "docs" / "settings.md").write_text(settings_page())
