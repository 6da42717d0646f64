"""When a source may be told something, and which of its tasks have to wait."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from agent_core import Backoff, Event, Key

LANES = 4  # reports at once to one source
LATE = 1000  # tasks of one source that are put off by name; of more, the first due is forgotten
MANY = 10  # so many tasks in one report and not one taken: the source is slow, not they
STRIKES = 3  # reports in a row that failed, of lone tasks: then it is the source after all


@dataclass(kw_only=True, slots=True)
class Late:
    """A task whose next event could not be told."""

    backoff: Backoff
    due: float = 0.0  # boot time; not before
    alone: bool = False  # a report with it failed as a whole: it is told by itself from now on
    struck: bool = False  # it failed by itself while others were taken


@dataclass(kw_only=True, slots=True)
class Source:
    """One plugin that gave us tasks, as the syncer sees it. Times are boot times."""

    name: str
    rng: random.Random
    backoff: Backoff = field(init=False)
    paused_until: float = 0.0
    away: str = ""  # why it cannot be reached; "" while it can
    failures: int = 0  # reports in a row without an answer
    lanes: int = 0  # reports in flight
    busy: set[Key] = field(default_factory=set)  # tasks of which something is in flight
    late: dict[Key, Late] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backoff = Backoff(rng=self.rng)

    # --- what may be told

    def ready(self, now: float) -> bool:
        """One that is away is asked by one lane, once a pause."""
        return self.paused_until <= now and self.lanes < (1 if self.away else LANES)

    def waiting(self, now: float) -> set[Key]:
        """Tasks that nothing may be told of now."""
        return self.busy | {key for key, late in self.late.items() if late.due > now}

    def next_time(self, now: float) -> float | None:
        """When something may be told that may not be told now."""
        if self.paused_until > now:
            return self.paused_until
        return min((late.due for late in self.late.values() if late.due > now), default=None)

    def batch(self, events: Sequence[Event]) -> list[Event]:
        """What goes together: a task that is under suspicion goes by itself."""
        first = events[0].key
        if self._alone(first):
            return [event for event in events if event.key == first]
        return [event for event in events if not self._alone(event.key)]

    def _alone(self, key: Key) -> bool:
        late = self.late.get(key)
        return late is not None and late.alone

    # --- what came of it

    def answered(self, now: float) -> bool:
        """It gave receipts. True if it had been away.

        Who failed only because the source was away may be told at once.
        """
        was_away = bool(self.away)
        self.away = ""
        self.failures = 0
        if was_away:
            self.backoff.reset()
            self.paused_until = 0.0
            for late in self.late.values():
                if late.alone and not late.struck:
                    late.due = now
        return was_away

    def settled(self, key: Key) -> None:
        self.late.pop(key, None)

    def put_off(self, key: Key, now: float, retry_after: float | None) -> None:
        """This task's event was answered with "not now"."""
        late = self._late(key)
        late.due = now + late.backoff.next(retry_after)
        late.alone = late.struck = False  # a report with it does get its answer

    def slow(self, now: float, retry_after: float | None) -> None:
        """It answers, and takes nothing."""
        self._pause(now, retry_after)

    def failed(
        self, keys: Collection[Key], why: str, now: float, retry_after: float | None
    ) -> bool:
        """A report got no answer. True if the source counts as away since now.

        One task that fails by itself among others that are taken is put off alone. Else the
        source pauses; then it is asked with one task at a time, each time another, so that one
        that no report survives cannot stand before the rest.
        """
        suspects = [self._late(key) for key in keys]
        lone = suspects[0] if len(suspects) == 1 else None
        if lone is not None:
            lone.due = now + lone.backoff.next(retry_after)
            if lone.struck:
                return False  # it fails as it did while others were taken: nothing new
        self.failures += 1
        if lone is not None and lone.alone and not self.away and self.failures < STRIKES:
            lone.struck = True
            return False
        for late in suspects:
            late.alone = True
        newly = not self.away
        self.away = why
        self._pause(now, retry_after)
        return newly

    def _pause(self, now: float, retry_after: float | None) -> None:
        if self.paused_until <= now:  # else another lane was told the same just now
            self.paused_until = now + self.backoff.next(retry_after)

    def hurry(self) -> None:
        """Try everything at once, and be patient again from the beginning."""
        self.paused_until = 0.0
        self.backoff.reset()
        for late in self.late.values():
            late.due = 0.0
            late.backoff.reset()

    def _late(self, key: Key) -> Late:
        known = self.late.get(key)
        if known is None:
            if len(self.late) >= LATE:
                del self.late[min(self.late, key=lambda each: self.late[each].due)]
            known = self.late[key] = Late(backoff=Backoff(rng=self.rng))
        return known
