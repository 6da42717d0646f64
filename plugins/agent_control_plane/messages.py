"""What servers on one database tell each other once it is committed: what has become possible."""

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from agent_control_plane.db import MOST_SAID, notify

_numbers: Final = itertools.count()  # the same words twice in one transaction are heard once


class Ready(NamedTuple):
    """Tasks can be claimed."""

    ready_for: str  # the machine, "" = any
    needs: str | None  # as needs.py writes them; None = too long to say
    priority: int
    many: int = 1


class Due(NamedTuple):
    """Time will change a task, perhaps before anybody looks again."""

    at: float


class Ordered(NamedTuple):
    """There is a new command for an agent."""

    agent_id: str


class Asks(NamedTuple):
    """An agent has asked anew: what it asked before is over."""

    agent_id: str
    made: float  # when


class Written(NamedTuple):
    """There is more to read of a task, or its run has ended."""

    task_id: str


Message = Ready | Due | Ordered | Asks | Written
_KINDS: Final[Mapping[str, Callable[..., Message]]] = {
    kind.__name__: kind for kind in (Ready, Due, Ordered, Asks, Written)
}


def say(connection: Connection, message: Message) -> None:
    """Heard after COMMIT by every server, this one as well."""
    notify(connection, _text(message))


def _text(message: Message) -> str:
    words = [type(message).__name__, next(_numbers), *message]
    text = json.dumps(words, separators=(",", ":"), ensure_ascii=False)
    if isinstance(message, Ready) and len(text.encode()) > MOST_SAID:
        return _text(message._replace(needs=None))
    return text


def read(text: str) -> Message | None:
    """None: said by another version of the server."""
    try:
        kind, _, *fields = json.loads(text)
        return _KINDS[kind](*fields)
    except (ValueError, KeyError, TypeError):
        return None


def ready(connection: Connection, changed: Any) -> None:
    """Say which tasks can be claimed: `changed` yields (ready_for, needs, priority)."""
    counts: dict[tuple[str, str, int], int] = {}
    for key in changed:
        counts[key] = counts.get(key, 0) + 1
    for (ready_for, needs, priority), count in counts.items():
        say(connection, Ready(ready_for, needs, priority, count))
