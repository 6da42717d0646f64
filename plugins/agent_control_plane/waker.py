"""The claims that hang: each is woken when there is something for it, and nobody else is."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

from agent_control_plane import messages
from agent_control_plane.messages import Asks, Ordered, Ready
from agent_control_plane.needs import Offer, takes
from agent_core.api.http import Problem
from agent_core.api.wire import Code
from agent_core.clock import Clock

MOST_HANGING: Final = 10_000  # claims
UNPLACED_KEPT: Final = 1000  # words of tasks that no idle claim could take


class Waiter:
    """One claim, from its first look at the queue to its answer."""

    __slots__ = ("again", "agent_id", "made", "offer", "over", "seen", "woken", "woken_for")

    def __init__(self, agent_id: str, made: float, seen: int) -> None:
        self.agent_id = agent_id
        self.made = made  # when, in seconds since the epoch
        self.seen = seen  # messages that were heard when it last began to look
        self.offer: Offer | None = None  # None: it has not looked yet
        self.again = False  # something came for it alone while it looked
        self.over = False  # its agent asks anew, or the server stops
        self.woken: asyncio.Future[None] | None = None  # while it is idle
        self.woken_for: Ready | None = None  # and has not looked for it yet


@dataclass(slots=True)
class _Unplaced:
    number: int
    ready: Ready
    left: int


class Waker:
    """Everything happens in the server's loop; `heard` is called with what was committed.

    A claim is idle, or it looks. What becomes ready wakes as many idle claims as can take it, the
    longest idle first. Where none can, claims that look just then are told when they would become
    idle: they may have looked a moment too early.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._idle: dict[Waiter, None] = {}
        self._looking: dict[Waiter, None] = {}
        self._of_agent: dict[str, Waiter] = {}
        self._unplaced: deque[_Unplaced] = deque(maxlen=UNPLACED_KEPT)
        self._heard = 0
        self.looks = 0  # at the queue, by claims that may hang
        self._stopped = False

    @property
    def hanging(self) -> int:
        return len(self._idle) + len(self._looking)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def enlist(self, agent_id: str) -> Waiter:
        """A claim begins to look; the one before it of the same agent is over."""
        self.dismiss(agent_id)
        if self.hanging >= MOST_HANGING:
            raise Problem(Code.FULL, f"{MOST_HANGING} claims wait already; try again later")
        waiter = Waiter(agent_id, self._clock.wall(), self._heard)
        waiter.over = self._stopped
        self._of_agent[agent_id] = waiter
        self._looking[waiter] = None
        self.looks += 1
        return waiter

    def dismiss(self, agent_id: str) -> None:
        """The agent's claim that hangs, if there is one, is to be answered as it is."""
        waiter = self._of_agent.pop(agent_id, None)
        if waiter is not None:
            self._end(waiter)

    def leave(self, waiter: Waiter) -> None:
        """The claim is answered, or nobody waits for its answer; what it was woken for is not."""
        self._idle.pop(waiter, None)
        self._looking.pop(waiter, None)
        if self._of_agent.get(waiter.agent_id) is waiter:
            del self._of_agent[waiter.agent_id]
        unused, waiter.woken_for = waiter.woken_for, None
        if unused is not None:
            self._place(unused._replace(many=1))
        self._forget_unplaced()

    async def wait(
        self, waiter: Waiter, offer: Offer, seconds: float, gone: "asyncio.Future[None]"
    ) -> bool:
        """Be idle until there may be something, the time is up, or the client has `gone`.

        True: look again.
        """
        waiter.offer = offer
        if waiter.over:
            return False
        if waiter.again or self._came_meanwhile(waiter, offer):
            self._look(waiter)
            return True
        waiter.woken = asyncio.get_running_loop().create_future()
        self._looking.pop(waiter, None)
        self._idle[waiter] = None
        self._forget_unplaced()
        woken, timer = waiter.woken, asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((woken, timer, gone), return_when=asyncio.FIRST_COMPLETED)
            return woken.done()
        finally:
            timer.cancel()
            waiter.woken = None
            self._idle.pop(waiter, None)
            self._looking[waiter] = None
            if woken.done():
                self._look(waiter)

    def stop(self) -> None:
        """Whoever waits is answered now, and nobody waits any more."""
        self._stopped = True
        for waiter in list(self._of_agent.values()):
            self._end(waiter)

    def heard(self, message: messages.Message) -> None:
        if isinstance(message, Ready):
            self._heard += 1
            self._place(message)
        elif isinstance(message, Ordered):
            waiter = self._of_agent.get(message.agent_id)
            if waiter is not None:
                self._call(waiter)
        elif isinstance(message, Asks):
            waiter = self._of_agent.get(message.agent_id)
            if waiter is not None and waiter.made < message.made:
                self.dismiss(message.agent_id)

    def missed(self) -> None:
        """Words of other servers may have been lost: whoever waits looks again."""
        for waiter in list(self._of_agent.values()):
            self._call(waiter)

    def _place(self, ready: Ready) -> None:
        left = ready.many
        chosen = []
        for waiter in self._idle:
            if left == 0:
                break
            if waiter.offer is not None and _takes(waiter.offer, ready):
                chosen.append(waiter)
                left -= 1
        for waiter in chosen:
            waiter.woken_for = ready
            self._wake(waiter)
        if left and self._looking:
            self._unplaced.append(_Unplaced(self._heard, ready, left))

    def _came_meanwhile(self, waiter: Waiter, offer: Offer) -> bool:
        """Whether something became ready while it looked, that nobody was told of."""
        for unplaced in self._unplaced:
            if unplaced.number > waiter.seen and unplaced.left and _takes(offer, unplaced.ready):
                unplaced.left -= 1
                waiter.woken_for = unplaced.ready
                return True
        return False

    def _look(self, waiter: Waiter) -> None:
        waiter.seen, waiter.again = self._heard, False
        self.looks += 1

    def _forget_unplaced(self) -> None:
        if not self._looking:
            self._unplaced.clear()

    def _call(self, waiter: Waiter) -> None:
        """It looks now, or once more."""
        if waiter.woken is None:
            waiter.again = True
        else:
            self._wake(waiter)

    def _wake(self, waiter: Waiter) -> None:
        self._idle.pop(waiter, None)
        self._looking[waiter] = None
        if waiter.woken is not None and not waiter.woken.done():
            waiter.woken.set_result(None)

    def _end(self, waiter: Waiter) -> None:
        waiter.over = True
        if waiter.woken is not None:
            self._wake(waiter)


def _takes(offer: Offer, ready: Ready) -> bool:
    if ready.needs is None:
        return ready.ready_for in ("", offer.machine_id)
    return takes(offer, ready.ready_for, ready.needs, ready.priority)
