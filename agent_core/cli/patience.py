"""Asking a control plane that may be away: again and again, saying so once."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

from agent_core.errors import Refused, Unreachable

T = TypeVar("T")
FIRST_PAUSE: Final = 0.2  # seconds between two tries, growing
LAST_PAUSE: Final = 2.0
LONGEST_ASKED_FOR: Final = 30.0  # seconds; a Retry-After may name more


class Patience:
    """Waits for an answer as long as one may come; `away` and `back` are told once an outage."""

    def __init__(
        self,
        *,
        away: Callable[[Exception], None],
        back: Callable[[], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._away = away
        self._back = back
        self._sleep = sleep  # may raise what ends the waiting

    def ask(self, call: Callable[[], T]) -> T:
        """What `call` answers. Raises Refused or Unreachable only where waiting cannot help."""
        from agent_core.api.client import passing  # noqa: PLC0415  # httpx costs 100 ms
        from agent_core.backoff import Backoff  # noqa: PLC0415

        backoff = Backoff(base=FIRST_PAUSE, cap=LAST_PAUSE)
        missed = False
        while True:
            try:
                answer = call()
            except (Refused, Unreachable) as error:
                if not passing(error):
                    raise
                if not missed:
                    self._away(error)
                missed = True
                asked_for = getattr(error, "retry_after", None) or 0.0
                self._sleep(backoff.next(min(asked_for, LONGEST_ASKED_FOR)))
            else:
                if missed:
                    self._back()
                return answer
