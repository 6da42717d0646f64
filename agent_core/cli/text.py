"""Words for people: text made harmless for a terminal, times, durations."""

import datetime as dt
import re
import time
from typing import Any

import click

from agent_core.api.wire import Json, epoch

# Control characters, and what turns the direction of text or hides in it.
_ACTING = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_ACTING_IN_LINES = re.compile(_ACTING.pattern.replace(r"\x00-\x1f", r"\x00-\x08\x0b-\x1f"))
_ACTING_IN_OUTPUT = re.compile(_ACTING.pattern.replace(r"\x00-\x1f", r"\x00-\x08\x0b\x0c\x0e-\x1f"))
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\x1b": "\\x1b"}
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.ASCII)


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    number = ord(char)
    return _NAMED.get(char) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


def visible(text: str) -> str:
    """One line in which nothing acts on the terminal: escape sequences stand there as text."""
    return _ACTING.sub(_escape, text)


def visible_lines(text: str) -> str:
    """The same for output of several lines: line ends and tabs stay."""
    return _ACTING_IN_LINES.sub(_escape, text.replace("\r\n", "\n"))


def visible_output(text: str) -> str:
    """A piece of what a program printed: line ends, tabs and carriage returns stay.

    A carriage return writes its own line anew, as progress bars do, and reaches no other.
    """
    return _ACTING_IN_OUTPUT.sub(_escape, text)


def words(value: Json) -> str:
    """Any value of an answer as harmless text; None is empty."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return visible(str(value))


def moment(value: Json) -> str:
    """A time of the wire in the reader's own zone."""
    try:
        seconds = epoch(value)
    except (ValueError, OverflowError):
        return words(value)
    if seconds is None:
        return ""
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """`4.2 s`, `3m07s`, `2h05m`, `3d04h`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"
    if seconds < 86400:
        return f"{int(seconds) // 3600}h{int(seconds) // 60 % 60:02d}m"
    return f"{int(seconds) // 86400}d{int(seconds) // 3600 % 24:02d}h"


def took(started: Json, ended: Json) -> str:
    """How long it ran, or has been running; empty if it never began."""
    try:
        begin, end = epoch(started), epoch(ended)
    except (ValueError, OverflowError):
        return ""
    if begin is None:
        return ""
    return span(max(0.0, (time.time() if end is None else end) - begin))


class Duration(click.ParamType[float]):
    """Seconds, or a number with s, m, h or d behind it."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration: write seconds, or 30s, 5m, 2h, 1d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]
