"""What is known of a start, by whoever knows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .link import Link

Line = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Known:
    """What is known of a start: by a living supervisor, or by a journal that one left behind.

    The link to a living one writes the end into it.
    """

    place: str  # the directory's name
    journal_id: str
    facts: Line | None  # pid, ticks, wall, since; None: only the intent is known
    link: Link | None = None  # to the living supervisor
    end: Line | None = None
    mark: str = ""  # the words that its first signal with words bore
    never: bool = False


class Away(ConnectionError):
    """A supervisor is there and does not answer now; ask again."""
