"""From the wire to a Task: readable forms are read, one bad entry never harms the others."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent_core import Clock, Json, Lease, Resources, Task, resources, wire

ID_LIMIT = 255  # characters
SECONDS_LIMIT = 1e9
NOTHING = resources.NOTHING
# What the server knows of earlier attempts, or keeps for itself: ours begin afresh.
_IGNORED = frozenset(
    {
        *("status", "exit_code", "stdout", "stderr", "error", "error_msg", "error_code"),
        *("assigned_agent_id", "assigned_at", "started_at", "ended_at", "lease_expires_at"),
        *("synced", "result", "runs", "usage", "truncated"),
        *("machine_id", "group_id", "parent_id", "depends_on", "regrant_at"),
    }
)
_READ = frozenset(
    {
        *("id", "attempt_id", "name", "type", "command", "args", "exec", "workdir", "env"),
        *("env_vars", "timeout", "priority", "created_at"),
        *("retry_count", "max_retries", "retry_delay"),
        *("on_lost_contact", "disconnect_grace", "user", "labels", "resources", "executor"),
    }
)
_KNOWN = _READ | _IGNORED


class Unreadable(ValueError):
    """A field that holds nothing a task could mean; the words name the field."""


def read_tasks(
    entries: Json, *, source: str, agent_id: str, lease: Lease, clock: Clock, log: Any
) -> list[Task]:
    """The tasks of a claim's answer, most urgent first.

    What cannot be read but reported becomes a task with `unreadable` set; what cannot even be
    reported, and what belongs to another agent, is dropped and logged.
    """
    tasks: dict[tuple[str, str], Task] = {}
    for entry in entries if isinstance(entries, list) else []:
        key = _key(entry)
        if key is None:
            log.error("dropped a task without a usable id and attempt_id", entry=repr(entry)[:200])
        elif entry.get("assigned_agent_id") not in (None, "", agent_id):
            log.error("dropped a task that is another agent's", task=key[0])
        else:
            fixed: dict[str, Any] = {"id": key[0], "attempt_id": key[1], "source": source}
            fixed |= {"lease": lease, "created_at": clock.wall()}
            try:
                task = Task(**fixed | _description(entry) | {"lease": _lease(entry, lease)})
            except Unreadable as error:
                task = Task(**fixed, command="", unreadable=_sayable(str(error)))
            tasks.setdefault(key, task)
    return sorted(tasks.values(), key=lambda task: (task.priority, task.created_at))


def _key(entry: Json) -> tuple[str, str] | None:
    if not isinstance(entry, Mapping):
        return None
    found = []
    for name in ("id", "attempt_id"):
        value = entry.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        usable = isinstance(value, str) and 0 < len(value) <= ID_LIMIT and value.isprintable()
        if not usable or value in {".", ".."}:  # those two mean something else in a path
            return None
        found.append(str(value))
    return found[0], found[1]


def _description(entry: Mapping[str, Json]) -> dict[str, Any]:
    command = _text(entry, "command")
    if not command:
        raise Unreadable("command: missing; a task needs a command")
    found: dict[str, Any] = {
        "command": command,
        "name": _text(entry, "name"),
        "type": _text(entry, "type") or "shell",
        "args": _args(entry.get("args")),
        "exec": _flag(entry, "exec"),
        "workdir": _text(entry, "workdir"),
        "env": _env(entry),
        "user": _text(entry, "user"),
        "labels": _pairs(entry, "labels"),
        "resources": _resources(entry.get("resources")),
        "wanted_executor": _text(entry, "executor"),
        "extra": _extra(entry),
    }
    if timeout := _number(entry, "timeout"):
        found["timeout"] = timeout
    if retry_delay := _number(entry, "retry_delay"):
        found["retry_delay"] = retry_delay
    if priority := _number(entry, "priority", signed=True):
        found["priority"] = min(max(int(priority), 1), 10)
    for name in ("max_retries", "retry_count"):
        found[name] = min(int(_number(entry, name, signed=True)), 2**31)
        found[name] = max(found[name], 0)
    if created_at := _time(entry.get("created_at")):
        found["created_at"] = created_at
    return found


def _lease(entry: Mapping[str, Json], lease: Lease) -> Lease:
    """With the time by which a run that must never overlap has to end without contact."""
    if entry.get("on_lost_contact") != "stop":
        return lease
    return replace(lease, stop_after=_number(entry, "disconnect_grace"))


def _text(entry: Mapping[str, Json], name: str) -> str:
    value = entry.get(name)
    if value is None or value == "":
        return ""
    return _scalar(value, name)


def _scalar(value: Json, name: str) -> str:
    """Text; a number or a boolean as its JSON text."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise Unreadable(f"{name}: text is needed, this is {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unreadable(f"{name}: holds half a surrogate pair, which is no text") from None
    return value


def _args(value: Json) -> tuple[str, ...]:
    value = _unfolded(value)
    if value is None or value == "":
        return ()
    if isinstance(value, Mapping):
        raise Unreadable("args: a list of strings is needed, this is an object")
    items = value if isinstance(value, list) else [value]
    return tuple(
        _scalar(item, f"args[{number}]") for number, item in enumerate(items) if item is not None
    )


def _env(entry: Mapping[str, Json]) -> dict[str, str]:
    return _pairs(entry, "env" if entry.get("env") is not None else "env_vars")


def _pairs(entry: Mapping[str, Json], name: str) -> dict[str, str]:
    value = _unfolded(entry.get(name))
    if not value and (value is None or value in ("", [], {})):
        return {}
    if not isinstance(value, Mapping):
        raise Unreadable(f"{name}: an object of strings is needed, this is {_kind(value)}")
    found = {}
    for key, item in value.items():
        if item is not None:
            found[_scalar(key, name)] = _scalar(item, f"{name}.{key}")
    return found


def _resources(value: Json) -> Resources:
    value = _unfolded(value)
    if not value and (value is None or value in ("", [], {})):
        return NOTHING
    try:
        return resources.read(value)
    except ValueError as error:
        raise Unreadable(str(error)) from None


def _unfolded(value: Json) -> Json:
    """Text that holds a JSON list or object as that; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _flag(entry: Mapping[str, Json], name: str) -> bool:
    value = entry.get(name)
    if value is None or value in ("", "false", False):  # False is 0, too
        return False
    if value in ("true", True):
        return True
    raise Unreadable(f"{name}: true or false is needed, this is {_kind(value)}")


def _number(entry: Mapping[str, Json], name: str, *, signed: bool = False) -> float:
    """A number, also one written as text; 0 for null, and where a negative one has no meaning."""
    value = entry.get(name)
    if type(value) is int and 0 <= value <= SECONDS_LIMIT:  # nearly always
        return value
    if value is None or value == "":
        return 0
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unreadable(f"{name}: a number is needed, this is {_kind(entry.get(name))}")
    if abs(value) > SECONDS_LIMIT:
        raise Unreadable(f"{name}: {value} is beyond what a task can have")
    return value if signed else max(value, 0)


def _time(value: Json) -> float | None:
    try:
        return wire.epoch(value)
    except (ValueError, OverflowError):
        return None  # it only orders tasks: not worth refusing one


def _extra(entry: Mapping[str, Json]) -> dict[str, Json]:
    """Fields that we do not know, kept; one that is no text in any encoding is not."""
    names = entry.keys() - _KNOWN
    if not names:
        return {}
    extra = {name: value for name, value in entry.items() if name in names}
    try:
        json.dumps(extra, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return {}
    return extra


def _kind(value: Json) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "null" if value is None else "a list" if isinstance(value, list) else "an object"


def _sayable(words: str) -> str:
    """Words may quote what was no text, and are stored and sent themselves."""
    return words.encode("utf-8", "replace").decode()
