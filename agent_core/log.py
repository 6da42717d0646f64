"""What the agent says of its work: one line an event, for people or as JSON, without secrets."""

import datetime as dt
import json
import logging
import re
import sys
import threading
from collections.abc import Collection, Mapping, MutableMapping
from contextvars import Context, ContextVar
from types import MappingProxyType
from typing import Any, TextIO

import structlog

from agent_core.sections import LogSection

Entry = MutableMapping[str, Any]
MASK = "***"
SHORTEST_SECRET = 6  # characters; shorter ones would be found in ordinary words
LONGEST_VALUE = 2000  # characters of one value, and of an event
ABOUT = ("task", "attempt", "run")
_about: ContextVar[Mapping[str, object]] = ContextVar("about", default=MappingProxyType({}))
_NOTHING = Context()
LONGEST_TRACEBACK = 20_000  # characters; the end is kept, where the error stands
_SECRET_NAME = re.compile(r"token|password|secret|authorization|cookie", re.IGNORECASE)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # forges or breaks lines


def configure(
    section: LogSection, stream: TextIO | None = None, secrets: Collection[str] = ()
) -> None:
    """Set up the one log of this process. Texts in `secrets` are masked wherever they stand."""
    lines = _Lines(sys.stderr if stream is None else stream, secrets)
    structlog.configure(
        processors=[
            _say_about,
            structlog.processors.add_log_level,
            _hide,
            # Its plain form: structlog's default is rich, which prints every local, tokens too.
            structlog.processors.format_exc_info,
            _shorten,
            _json if section.format == "json" else _text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(section.level),
        logger_factory=lambda name="": _Named(lines, name),
        cache_logger_on_first_use=True,
    )
    _take_over_library_logs()


def get(name: str) -> Any:
    """A logger whose lines carry this name. Its methods: debug, info, warning, error, exception."""
    return structlog.get_logger(name)


class about:  # noqa: N801 (it is used like a function)
    """Until the block ends, every line of this asyncio task carries these (task, attempt, run)."""

    __slots__ = ("_before", "_context")

    def __init__(self, **context: object) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._before = _about.set({**_about.get(), **self._context})

    def __exit__(self, *_: object) -> None:
        _about.reset(self._before)


def about_from_now_on(**context: object) -> None:
    """Like `about`, for the rest of the block, or of this asyncio task."""
    _about.set({**_about.get(), **context})


def about_nothing() -> Context:
    """For a task that works for others than the one that happens to create it."""
    return _NOTHING.copy()


class _Lines:
    """Writes whole lines, from any thread; a stream that takes no more stops nothing."""

    def __init__(self, stream: TextIO, secrets: Collection[str]) -> None:
        self._stream = stream
        self._secrets = sorted((s for s in secrets if len(s) >= SHORTEST_SECRET), key=len)[::-1]
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        for secret in self._secrets:
            line = line.replace(secret, MASK)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = line.encode(encoding, "backslashreplace").decode(encoding, "replace")
        try:
            with self._lock:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (OSError, ValueError):  # a closed pipe or a full disk must not end the work
            return


class _Named:
    """What structlog calls with a rendered line; carries the name for the renderers."""

    def __init__(self, lines: _Lines, name: str) -> None:
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = lines.write


class _LibraryHandler(logging.Handler):
    """Hands what libraries log by the standard library to the same log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        level = "error" if record.levelno >= logging.ERROR else "warning"
        name = record.name.split(".", 1)[0]
        getattr(get(name), level)(message, exc_info=record.exc_info or None)


def _take_over_library_logs() -> None:
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _LibraryHandler)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryHandler(logging.WARNING))


def _say_about(_logger: object, _method: str, entry: Entry) -> Entry:
    for name, value in _about.get().items():
        entry.setdefault(name, value)
    return entry


def _hide(_logger: object, _method: str, entry: Entry) -> Entry:
    for name in entry:
        if name != "event" and _SECRET_NAME.search(name):
            entry[name] = MASK
    return entry


def _shorten(_logger: object, _method: str, entry: Entry) -> Entry:
    for name, value in entry.items():
        if name == "exception":
            entry[name] = str(value)[-LONGEST_TRACEBACK:]
        elif not isinstance(value, bool | int | float | None):
            text = str(value)
            entry[name] = text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"
    return entry


def _json(logger: _Named, _method: str, entry: Entry) -> str:
    now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    first = {"time": now.replace("+00:00", "Z"), "level": entry.pop("level"), "logger": logger.name}
    return json.dumps({**first, **entry}, default=str)


def _text(logger: _Named, _method: str, entry: Entry) -> str:
    """`12:00:01 info     server_client  registered  server=http://…`, a traceback below it."""
    time = dt.datetime.now().astimezone().strftime("%H:%M:%S")
    level, event, trace = entry.pop("level"), entry.pop("event", ""), entry.pop("exception", None)
    # What it is about comes last and in one order, whichever way it was bound.
    pairs = " ".join(f"{key}={_value(entry[key])}" for key in sorted(entry, key=_place))
    line = f"{time} {level:<7} {logger.name}  {_clean(str(event))}" + (
        f"  {pairs}" if pairs else ""
    )
    if trace:
        line += "\n" + "\n".join(f"  {_clean(part)}" for part in str(trace).splitlines())
    return line


def _place(key: str) -> int:
    return ABOUT.index(key) if key in ABOUT else -1


def _value(value: object) -> str:
    text = _clean(str(value))
    plain = text and not re.search(r"[\s\"'=]", text)
    return text if plain else '"' + text.replace('"', '\\"') + '"'


def _clean(text: str) -> str:
    """No text from outside can forge a line or move the cursor."""
    return _UNSAFE.sub(lambda match: repr(match[0])[1:-1], text)
