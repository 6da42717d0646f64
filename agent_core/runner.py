"""One run, from its slot to its stored end: start, timeout, grace, and the reason it ended for."""

import asyncio
from collections.abc import Callable, Sequence

from agent_core import endings, progress
from agent_core import launch as launching
from agent_core.clock import Instant
from agent_core.course import Course
from agent_core.endings import Stop
from agent_core.errors import Conflict, NeverRan, reason_of
from agent_core.execution import Execution
from agent_core.hooks import Start
from agent_core.lifecycle import Move, Status
from agent_core.log import about_from_now_on
from agent_core.models import Launch, Lost, Outcome, Reason, Task
from agent_core.place import Place
from agent_core.recovery import find_run
from agent_core.signals import Once, resolve
from agent_core.watch import Watch, outcome_of
from agent_core.workbench import Workbench, made_ready, taking

STARTS = 3  # tries to begin, where the executor fails without a reason and nothing began


class Runner:
    """Brings one task from its slot to its end, or back to waiting.

    `run` returns when all is stored and there is nothing more to do; `freed` is called as soon as
    the run needs no slot any more, `ending` when it is told to end.
    """

    def __init__(
        self,
        bench: Workbench,
        task: Task,
        devices: Sequence[str] = (),
        *,
        freed: Callable[[], None] = lambda: None,
        ending: Callable[[], None] = lambda: None,
        place: Place | None = None,
        stored: "tuple[Launch, Start] | None" = None,
    ) -> None:
        """`place`: where it has no slot yet. `stored`: its start, stored with the task itself."""
        self._course = Course(task, bench.moves, bench.clock, bench.log)
        self._devices = tuple(devices)  # that its slot has for it
        self._freed = freed
        self._ending = ending
        self._bench = bench
        self._log = bench.log
        self._stop: Stop | None = None
        # The agent leaves, or a stop. An event's wait would cost a task a run.
        self._called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = Once()  # the agent leaves
        self.place = place or Place()
        self._stored = stored
        self._assigning = False  # its start is being stored
        self._begun: asyncio.Future[None] | None = None  # that it runs is stored
        self.reader: progress.Reader | None = None  # of what a run says; None: nothing ran yet
        self._failures = 0  # starts that an executor failed to answer
        self._try_again = False  # the last of them began nothing

    @property
    def task(self) -> Task:
        """As it really stands, and a moment later so stored."""
        return self._course.task

    def go(self) -> None:
        """It has a slot now."""
        self.place.give()
        if self._assigning:
            self._bench.moves.hurry()

    def stop(self, stop: Stop) -> None:
        """End the run for this reason; the first one counts, but a cancel outlasts a preemption."""
        if self._stop is None or (self._stop.reason is Reason.PREEMPTED != stop.reason):
            self._stop = stop
        resolve(self._called)
        self.go()

    @property
    def _for_good(self) -> Stop | None:
        """The stop after which no other run may follow."""
        return None if self._stop and self._stop.reason is Reason.PREEMPTED else self._stop

    def leave(self) -> None:
        """The agent stops: leave a run that outlives it alone, end any other as lost."""
        self._left.send()
        resolve(self._called)
        self.go()

    async def run(self) -> None:
        """A new start, or the one that was stored before the agent was restarted."""
        if self.task.status is Status.PREEMPTED:
            await self._course.make(Move.RETURN)
        elif self.task.status is not Status.PENDING and not self._stored:
            launch = launching.recall(self.task, self._bench.runs_dir)
            await self._find_again(launch, why="the agent was restarted")
        else:
            await self._start()
            backoff = self._bench.backoff()
            while self._try_again and not self._called.done():
                await asyncio.wait({self._called}, timeout=backoff.next())
                await self._start()
        if self._for_good and self.task.status is Status.PENDING:
            # Nothing began, or the word came when the run had ended: no other run may follow.
            await self._course.make(Move.CANCEL, outcome=endings.unbegun(self._for_good))

    # --- a new start

    async def _start(self) -> None:
        """Judge once more, store the start, then begin it."""
        self._try_again = False
        now = Instant.now(self._bench.clock)
        stored, self._stored = self._stored, None
        ready = stored or await made_ready(self._bench, self.task, now, self._devices)
        if isinstance(ready, Outcome):
            if not self._called.done():
                await self._course.make(Move.REFUSE, outcome=ready)
            return
        launch, start = ready
        try:
            if not stored and not await self._assigned(launch, start, now):
                return
            if await self._has_room(launch, start):
                await self._execute(launch, start)
        finally:
            start.drop()

    async def _assigned(self, launch: Launch, start: Start, now: Instant) -> bool:
        """Store the start. False if it is not wanted any more."""
        if not self._bench.hooks.finds_again(start.plugin):
            await self.place.reached()  # after a crash nobody would know that it never began
        if self._called.done() or self.place.given_back:
            return False
        self._assigning = True
        soon = self.place.there
        changes = taking(self.task, launch, start, now, self._devices)
        await self._course.make(Move.ASSIGN, soon=soon, **changes)
        self._assigning = False
        return True

    async def _has_room(self, launch: Launch, start: Start) -> bool:
        """Make its room and wait for its slot. False if it does not begin."""
        if not self._may_begin:
            await self._unbegun(launch)
            return False
        try:
            await self._bench.rooms.make(launch)
        except OSError as error:
            words = f"the private directory of the run cannot be made: {error}"
            await self._never_ran(launch, NeverRan(words, passing=True))
            return False
        await self.place.reached(start)
        begins = self._may_begin or not await self.place.taken_back(self._bench)
        if not begins:
            await self._unbegun(launch)
        return begins

    @property
    def _may_begin(self) -> bool:
        held_up = self.place.given_back or self._bench.leases.over(self.task)
        return not (self._called.done() or held_up)

    async def _execute(self, launch: Launch, start: Start) -> None:
        """From a stored start to a run in progress, or to the reason why there is none."""
        try:
            execution = await self._bench.hooks.execute(start)
        except NeverRan as error:
            await self._never_ran(launch, error)
        except Exception as error:  # an OSError too: it does not say that nothing began
            self._log.exception("a start was not answered; looking for what became of it")
            self._failures += 1
            await self._find_again(launch, why=reason_of(error))
        else:
            await self._begin(launch, execution)

    async def _unbegun(self, launch: Launch) -> None:
        """A start is known to have begun nothing: cancelled, or back among those that wait."""
        await self._bench.rooms.leave(launch)
        if stop := self._for_good:
            await self._course.make(Move.CANCEL, outcome=endings.unbegun(stop))
        else:
            await self._course.make(Move.UNASSIGN)

    async def _never_ran(self, launch: Launch, error: NeverRan) -> None:
        await self._bench.rooms.leave(launch)
        if stop := self._for_good:
            await self._course.make(Move.CANCEL, outcome=endings.unbegun(stop))
        elif error.passing and self._course.may_try_again:
            self._log.warning("a start did not come about, trying again later", why=str(error))
            await self._course.make(Move.POSTPONE, **self._course.next_try())
        else:
            await self._course.make(Move.NEVER_RAN, outcome=endings.never_ran(error))

    async def _begin(self, launch: Launch, execution: Execution) -> None:
        self._begun = self._course.happened(
            Move.BEGIN,
            run_no=launch.run_no,
            started_at=execution.started_at or Instant.now(self._bench.clock),
            handle=dict(execution.handle),
        )
        await self._follow(launch, execution)

    # --- a start whose answer is missing: after a restart, or because its executor failed

    async def _find_again(self, launch: Launch, *, why: str) -> None:
        """Go on from whatever became of it."""
        execution = await self._seek(launch, why)
        if execution is None:
            return
        self._log.info("found a run again", executor=self.task.executor)
        if self.task.status is Status.ASSIGNED:
            await self._begin(launch, execution)
        else:
            await self._follow(launch, execution)

    async def _seek(self, launch: Launch, why: str) -> Execution | None:
        """The run, if it goes on. None: it was brought to its end, or the agent leaves."""
        found = await find_run(self._bench, self.task, launch, self._left.future)
        if found is None or isinstance(found, Execution):
            return found
        if isinstance(found, Lost):
            await self._lost(launch, f"{why}: {found.reason}")
        elif self._failures < STARTS:
            await self._unbegun(launch)
            self._try_again = True
        else:
            words = f"its executor failed {STARTS} times to start it, the last time so: {why}"
            await self._never_ran(launch, NeverRan(words, passing=True))
        return None

    async def _lost(self, launch: Launch, why: str) -> None:
        """It may have run, so it counts as a run; how it ended is never guessed."""
        if self.task.status is Status.ASSIGNED:
            self._course.happened(
                Move.BEGIN, run_no=launch.run_no, started_at=self.task.assigned_at
            )
        await self._course.end(endings.lost(why, self._bench.clock.wall()))
        await self._bench.rooms.leave(launch)

    # --- while it runs

    async def _follow(self, launch: Launch, execution: Execution) -> None:
        """From a run in progress to its stored end; or leave it, if it outlives the agent."""
        about_from_now_on(run=launch.run_no)
        backoff = self._bench.backoff()
        while True:
            self.reader = progress.Reader(launch.progress, execution, self._bench.clock)
            try:
                outcome = await self._outcome(execution)
                break
            except Conflict:
                raise
            except Exception as error:
                self._log.exception("an executor lost sight of a run; asking it again")
                await asyncio.wait({self._left.future}, timeout=backoff.next())
                found = await self._seek(launch, why=reason_of(error))
            if found is None:
                return
            execution = found
        if outcome is None:
            if self._begun:
                await self._begun
            return
        self._freed()  # its slot waits for no disk
        await self._course.end(outcome)
        await self._let_go(execution)
        await self._bench.rooms.leave(launch, over=outcome.reason is not Reason.LOST)

    async def _outcome(self, execution: Execution) -> Outcome | None:
        assert self.task.started_at is not None, "a run that is followed has begun"
        return await outcome_of(
            Watch(
                execution=execution,
                timeout=self.task.timeout,
                started_at=self.task.started_at,
                clock=self._bench.clock,
                contact_left=lambda needed: self._bench.leases.contact_left(self.task, needed),
                begun=self._begun,
                called=self._called,
                stop=lambda: self._stop,
                ending=self._ending,
            )
        )

    async def _let_go(self, execution: Execution) -> None:
        try:
            await execution.forget()
        except Exception:  # it only remembers longer than it needs to
            self._log.exception("an executor could not let go of a run that has ended")
