"""The oldest of the outbox's events in memory, so that what was just kept is not read back."""

from collections.abc import Collection, Iterable, Sequence

from agent_core import Event, Key

MOST = 2000  # events in memory
BYTES = 8 * 2**20  # of output at most, here and in one answer, unless one event alone has more


class Window:
    """Holds every event of the table up to a number, in order; the table may have later ones.

    Told of each COMMIT in order, in the loop's thread.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self.upto = 0  # the table's events up to this number are here, unless they are settled
        self.more = True  # the table may have events after that
        self._events: dict[int, Event] = {}
        self._bytes = 0
        self._newest = 0  # the highest number that was heard of
        self._settled: set[int] | None = None  # while the table is read
        self._known = 0  # the highest number when that began

    @property
    def space(self) -> int:
        """Events that may be added."""
        return 0 if self._bytes >= BYTES else self._most - len(self._events)

    def kept(self, events: Iterable[Event], numbers: Iterable[int]) -> None:
        """These were stored just now, under these numbers."""
        for event, number in zip(events, numbers, strict=True):
            self._newest = max(self._newest, number)
            if self.more or self.space <= 0:
                self.more = True
            elif number > self.upto:
                self._add(event.numbered(number))

    def settled(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if self._settled is not None:
                self._settled.add(number)
            event = self._events.pop(number, None)
            if event is not None:
                self._bytes -= _size(event)

    def begin_reading(self) -> None:
        """The table is about to be read from `upto` on, by nobody else meanwhile."""
        self._settled, self._known = set(), self._newest

    def end_reading(self, found: Sequence[Event], *, all_of_it: bool) -> None:
        """What the table had after `upto`; `all_of_it`: and no more than that."""
        settled, self._settled = self._settled or set(), None
        for event in found:
            if event.seq not in settled:
                self._add(event)
            self.upto = event.seq
        if all_of_it:  # and what it had not any more was settled
            self.upto = max(self.upto, self._known)
        self._newest = max(self._newest, self.upto)
        self.more = not all_of_it or self._newest > self.upto

    def first(
        self, limit: int, skip: Collection[Key], skip_sources: Collection[str]
    ) -> tuple[list[Event], bool]:
        """Events to be told, in order; True if that is as many as are wanted or as fit."""
        chosen: list[Event] = []
        size = 0
        for event in self._events.values():
            if len(chosen) >= limit:
                return chosen, True
            if event.source in skip_sources or event.key in skip:
                continue
            size += _size(event)
            if chosen and size > BYTES:
                return chosen, True
            chosen.append(event)
        return chosen, len(chosen) >= limit

    def _add(self, event: Event) -> None:
        self._events[event.seq] = event
        self._bytes += _size(event)
        self.upto = event.seq


def _size(event: Event) -> int:
    return len(event.outcome.stdout) + len(event.outcome.stderr) if event.outcome else 0
