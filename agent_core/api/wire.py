"""What both ends of the wire share: business codes, envelope, times, the text rule, words.

Standard library only: agent, server and command line all import it.
"""

import base64
import datetime as dt
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

Json = Any  # JSON is the one border, with pluggy's, where Any is honest
PROTOCOL_VERSION = 1
AGENT_BODY_LIMIT = 16 * 2**20  # bytes
USER_BODY_LIMIT = 1 * 2**20  # bytes
COMPLETE_BODY_LIMIT = 8 * 2**20  # bytes of JSON that an agent lets a single complete have
REPLACEMENT = "�"  # U+FFFD, for what a text cannot hold


class Answer(StrEnum):
    """What an agent makes of the answer to a report."""

    TAKEN = "taken"  # done, or done before
    STALE = "stale"  # the attempt is not ours any more, or the task is final
    REFUSED = "refused"  # never will be: a dead letter
    RETRY = "retry"  # not now


class Code(IntEnum):
    """The business codes; each stands in docs/codes.md with what it means."""

    OK = 0
    ATTEMPT_LOST = 30001
    TASK_FINAL = 30002
    LEASE_OVER = 30003
    NO_SUCH_TASK = 30004
    INVALID = 30005
    POLICY = 30006
    NEVER_RAN = 30007
    LOST = 30008
    DEPENDENCY = 30009
    ATTEMPTS_EXHAUSTED = 30010
    TIMED_OUT = 30011
    NOT_AUTHORISED = 30012
    FULL = 30013
    CONFLICT = 30014
    TOO_LARGE = 30015
    NO_ROUTE = 30016
    INTERNAL = 30099


class Word(StrEnum):
    """Extensions of the protocol; each is used only where the server's register named it."""

    EVENTS = "events"  # many events in one request, a result for each
    WAIT = "wait"  # a claim that hangs until there is something
    COMMANDS = "commands"  # the server's words to an agent, in any answer
    LOGS = "logs"  # output while a task runs


class Action(StrEnum):
    """What a command asks of an agent; one that it does not carry out is answered 30016."""

    CANCEL = "cancel"
    SUSPEND = "suspend"
    RESUME = "resume"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    WATCH = "watch"  # somebody reads a task's output now: send it as it comes


class Meaning(NamedTuple):
    http: int  # status that our server sends with the code
    answer: Answer  # what our agent makes of it


MEANINGS: Mapping[Code, Meaning] = {
    Code.OK: Meaning(200, Answer.TAKEN),
    Code.ATTEMPT_LOST: Meaning(409, Answer.STALE),
    Code.TASK_FINAL: Meaning(409, Answer.STALE),
    Code.LEASE_OVER: Meaning(410, Answer.RETRY),
    Code.NO_SUCH_TASK: Meaning(404, Answer.STALE),
    Code.INVALID: Meaning(400, Answer.REFUSED),
    Code.NOT_AUTHORISED: Meaning(401, Answer.RETRY),
    Code.FULL: Meaning(503, Answer.RETRY),
    Code.CONFLICT: Meaning(409, Answer.REFUSED),
    Code.TOO_LARGE: Meaning(413, Answer.REFUSED),
    Code.NO_ROUTE: Meaning(404, Answer.RETRY),
    Code.INTERNAL: Meaning(500, Answer.RETRY),
}


def meaning(code: int) -> Meaning:
    """HTTP status and receipt of a business code; an unknown one is tried again."""
    try:
        return MEANINGS[Code(code)]
    except (ValueError, KeyError):
        return MEANINGS[Code.INTERNAL]


def envelope(data: Json = None, *, code: int = Code.OK, message: str = "") -> dict[str, Json]:
    """Our control plane's answer: `{"code", "message", "data"}`."""
    return {"code": int(code), "message": message or ("success" if code == 0 else ""), "data": data}


def rfc3339(seconds: float | None) -> str | None:
    """Epoch seconds as RFC 3339 in UTC, with milliseconds; None stays None."""
    if seconds is None:
        return None
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch(text: Json) -> float | None:
    """RFC 3339 text as epoch seconds; None for null, "" and the year 1 (Go's zero time).

    Raises ValueError for anything else that is no RFC 3339 time with an offset.
    """
    if text is None or text == "":
        return None
    if not isinstance(text, str):
        raise ValueError("a time is RFC 3339 text, such as 2026-01-31T12:00:00Z")
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs an offset, such as Z or +08:00")
    return None if moment.year <= 1 else moment.timestamp()


def plain_text(data: bytes) -> str:
    """Output as text that every server can store: what is not UTF-8, and NUL, is replaced."""
    return data.decode("utf-8", "replace").replace("\0", REPLACEMENT)


def output_fields(name: str, data: bytes) -> dict[str, str]:
    """`{name: text}`; `{name_base64: …}` for what is not UTF-8, has a NUL or would swell."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is not None and "\0" not in text:
        swollen = _count(data, _TWO_BYTES) + 5 * _count(data, _SIX_BYTES)
        if swollen <= len(data) / 3:
            return {name: text}
    return {f"{name}_base64": base64.b64encode(data).decode("ascii")}


_TWO_BYTES = b'\b\t\n\f\r"\\'  # as JSON: a backslash and a letter
_SIX_BYTES = bytes({*range(0x20), 0x7F} - set(_TWO_BYTES))  # as JSON: \u001b


def _count(data: bytes, wanted: bytes) -> int:
    return len(data) - len(data.translate(None, wanted))


def same_key(given: str) -> bytes:
    """A token as bytes, for `hmac.compare_digest`, which refuses non-ASCII text."""
    return given.encode("utf-8", "surrogateescape")
