"""How much work this agent could take now, and when those who bring it should ask anew."""

import asyncio
from collections import deque
from typing import NamedTuple

from agent_core.api import resources
from agent_core.api.resources import Free
from agent_core.clock import Clock
from agent_core.machine import Machine
from agent_core.models import PREEMPTION_DIFFERENCE, Demand
from agent_core.signals import Signal
from agent_core.waiting import Waiting

READY_LEAST = 2  # tasks to have ready at least, where a source cannot be asked just in time
READY_MOST = 200
SHORT = 4  # runs short when less than this part of what is had ready is left
LATELY = 1.0  # seconds; a slot that was taken for longer says nothing of when the next is free
GATHER = 0.1  # seconds in which several small changes are told as one


class State(NamedTuple):
    """What a source would want to hear of."""

    takes: bool  # tasks at all
    soon: bool  # and such as will soon begin
    urgent: int | None  # with no slot free
    free: Free  # without its slots: one more or less changes nothing


class Demands:
    """Asked by each source's loop; `look` is called whenever something may have changed."""

    def __init__(
        self, machine: Machine, waiting: Waiting, clock: Clock, *, gather: float = GATHER
    ) -> None:
        self.changed = Signal()
        self.hurry = Signal()  # sent when a slot is idle, or what is had ready will soon be used up
        self.closed = False  # nothing is taken any more, or for now
        self._machine = machine
        self._waiting = waiting
        self._clock = clock
        self._gather = gather
        self._ends: deque[float] = deque(maxlen=READY_MOST)  # boot times at which short runs ended
        self._told: State | None = None
        self._hurried = (False, False)  # short, and idle, at the last look
        self._later: asyncio.TimerHandle | None = None
        self._calm: asyncio.TimerHandle | None = None  # looks if short runs still end

    def now(self) -> Demand:
        free = self._free()
        slots = self.slots
        return Demand(
            slots=slots,
            standby=slots - self._soon,
            free=free,
            urgent_at_most=self._urgent(),
            changed=self.changed,
            short=self._short,
            hurry=self.hurry,
            again=self.now,
        )

    @property
    def slots(self) -> int:
        """Tasks that may be claimed now: for the free slots and some to have ready."""
        return self._room(max(READY_LEAST, self._frees()))

    @property
    def _soon(self) -> int:
        """Of these, such as begin at once, or in about a second."""
        return self._room(self._frees())

    def ended(self, lasted: float) -> None:
        """A slot is free after that many seconds: the more often, the more tasks are had ready.

        They wait for about `LATELY`, and only where slots turn over as quickly as that.
        """
        if lasted <= LATELY:
            self._ends.append(self._clock.boottime())
            self._look_again()

    def look(self) -> None:
        """Tell the sources if what they were told is not so any more.

        That there is room at all at once; gathered, that something else is free or that urgent
        work would find room, which short runs change all the time.
        """
        before, self._hurried = self._hurried, (self._short, self._idle)
        if any(now and not then for now, then in zip(self._hurried, before, strict=True)):
            self.hurry.send()
        state, told = self._state(), self._told
        if told is None or state.takes > told.takes or state.soon > told.soon:
            self._tell(state)
            return
        self._told = told._replace(takes=state.takes, soon=state.soon)
        if state != self._told and self._later is None:
            self._later = asyncio.get_running_loop().call_later(self._gather, self._gathered)

    def close(self) -> None:
        """Nothing is taken any more."""
        self.closed = True
        for timer in (self._later, self._calm):
            if timer:
                timer.cancel()

    def _gathered(self) -> None:
        self._later = None
        state = self._state()
        if state != self._told:
            self._tell(state)

    def _look_again(self) -> None:
        if self._calm is None:
            self._calm = asyncio.get_running_loop().call_later(LATELY, self._calmed)

    def _calmed(self) -> None:
        """Who asked for what begins soon must not wait for it any more, when nothing ends."""
        self._calm = None
        if self._frees():
            self._look_again()
        else:
            self._tell(self._state())

    def _tell(self, state: State) -> None:
        self._told = state
        self.changed.send()

    def _state(self) -> State:
        free = resources.of_slots(self._free(), 0)
        soon = self._soon > 0
        return State(takes=soon or self.slots > 0, soon=soon, urgent=self._urgent(), free=free)

    @property
    def _idle(self) -> bool:
        """A slot is free, and nobody here is about to begin in it."""
        return self._machine.free_slots > self._waiting.in_line

    @property
    def _short(self) -> bool:
        """At the pace of the last runs little time is left until a slot is idle."""
        return (self._waiting.ready - self._machine.free_slots) * SHORT <= self._frees()

    def _room(self, ready: int) -> int:
        if self.closed:
            return 0
        return max(0, self._machine.free_slots + ready - self._waiting.ready)

    def _frees(self) -> int:
        """How many slots of short runs were free again lately: about as many will be soon."""
        now = self._clock.boottime()
        while self._ends and now - self._ends[0] > LATELY:
            self._ends.popleft()
        return len(self._ends)

    def _free(self) -> Free:
        """What a task that comes now would find: those that wait here are ahead of it."""
        free = self._machine.free
        for task in self._waiting.asking:
            devices = resources.fitting(task.resources, free)
            if devices is None:
                free = resources.kept_for(task.resources, free)
            else:
                free = resources.without(free, task.resources, devices)
        return resources.of_slots(
            free, 0 if self.closed else max(0, self._machine.free_slots - self._waiting.in_line)
        )

    def _urgent(self) -> int | None:
        """A task of this priority would begin here although no slot is free."""
        if self.closed or self._machine.free_slots:
            return None
        running = self._machine.running
        able = sorted((each.task.priority for each in running if not each.ending), reverse=True)
        if not able or able[0] <= PREEMPTION_DIFFERENCE:
            return None
        # Those that wait here are ahead: for some of them room is coming, some take the rest.
        ahead = self._waiting.as_urgent_as(able[0] - PREEMPTION_DIFFERENCE) - (
            len(running) - len(able)
        )
        left = able[max(0, ahead) :]
        return left[0] - PREEMPTION_DIFFERENCE if left and left[0] > PREEMPTION_DIFFERENCE else None
