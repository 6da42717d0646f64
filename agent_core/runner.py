"""One run, from its slot to its stored end: start, timeout, grace, and the reason it ended for."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agent_core import endings, progress
from agent_core import launch as launching
from agent_core.clock import Instant
from agent_core.endings import Stop
from agent_core.errors import Conflict, NeverRan, StoreError
from agent_core.hooks import Start, reason_of
from agent_core.lifecycle import FINAL, Move, Status
from agent_core.log import about_from_now_on, get
from agent_core.models import Launch, Lost, Outcome, Piece, Progress, Reason, Stream, Task
from agent_core.protocols import Execution
from agent_core.recovery import find_run
from agent_core.watch import Watch, outcome_of
from agent_core.workbench import Workbench, consider

PROGRESS_AGE = 1.0  # seconds for which a progress that was read is good enough
TAIL_LIMIT = 5.0  # seconds for an executor to say what a run printed last
STARTS = 3  # tries to begin, where the executor fails without a reason and nothing began


class Runner:
    """Brings one task from its slot to its end, or back to waiting.

    `task` is always as stored. `run` returns when there is nothing more to do for this slot.
    """

    def __init__(self, bench: Workbench, task: Task, devices: Sequence[str] = ()) -> None:
        self.task = task
        self._devices = tuple(devices)  # that its slot has for it
        self._bench = bench
        self._log = get("runner")
        self._stop: Stop | None = None
        loop = asyncio.get_running_loop()  # futures: an event's wait would cost a task a run
        self._left: asyncio.Future[None] = loop.create_future()  # the agent leaves
        self._called: asyncio.Future[None] = loop.create_future()  # that, or a stop
        self._execution: Execution | None = None
        self._launch: Launch | None = None
        self._told: tuple[float, Progress | None] = (float("-inf"), None)
        self._failures = 0  # starts that an executor failed to answer
        self._try_again = False  # the last of them began nothing

    def stop(self, stop: Stop) -> None:
        """End the run for this reason; the first one counts, but a cancel outlasts a preemption."""
        if self._stop is None or (self._stop.reason is Reason.PREEMPTED != stop.reason):
            self._stop = stop
        _resolve(self._called)

    @property
    def _for_good(self) -> Stop | None:
        """The stop after which no other run may follow."""
        return None if self._stop and self._stop.reason is Reason.PREEMPTED else self._stop

    def leave(self) -> None:
        """The agent stops: leave a run that outlives it alone, end any other as lost."""
        _resolve(self._left)
        _resolve(self._called)

    async def progress(self) -> Progress | None:
        """How far the run says it is; read at most once a second. None if nothing runs."""
        execution, launch = self._execution, self._launch
        if execution is None or launch is None:
            return None
        now = self._bench.clock.boottime()
        if now - self._told[0] >= PROGRESS_AGE:
            told = await asyncio.to_thread(progress.read, launch.progress) or Progress()
            if not told.message:
                told = replace(told, message=await self._last_line(execution))
            self._told = (now, told)
        return self._told[1]

    async def _last_line(self, execution: Execution) -> str:
        try:
            async with asyncio.timeout(TAIL_LIMIT):
                return progress.last_line(await execution.tail("stdout", 4096))
        except Exception as error:  # only a message is missing
            self._log.debug("the last output cannot be read", why=reason_of(error))
            return ""

    async def output(self, stream: Stream, offset: int, limit: int) -> Piece | None:
        """What the run has printed from there on; None if nothing runs."""
        if self._execution is None:
            return None
        async with asyncio.timeout(TAIL_LIMIT):
            return await self._execution.output(stream, offset, limit)

    async def run(self) -> None:
        """A new start, or the one that was stored before the agent was restarted."""
        if self.task.status is Status.PREEMPTED:
            await self._make(Move.RETURN)
        elif self.task.status is not Status.PENDING:
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
            await self._make(Move.CANCEL, outcome=endings.unbegun(self._for_good))

    # --- a new start

    async def _start(self) -> None:
        """Judge once more, store the start, then begin it."""
        self._try_again = False
        now = Instant.now(self._bench.clock)
        launch, refusal = await consider(self._bench, self.task, now, self._devices)
        if self._called.done():
            return
        if launch is None or refusal:
            await self._make(Move.REFUSE, outcome=refusal)
            return
        try:
            start = self._bench.hooks.choose(launch)
        except NeverRan as error:
            await self._make(Move.REFUSE, outcome=endings.never_ran(error))
            return
        changes: dict[str, Any] = {"executor": start.plugin, "handle": {}}
        if self._devices != self.task.devices:
            changes["devices"] = self._devices
        try:
            await self._make(Move.ASSIGN, start_id=launch.start_id, assigned_at=now, **changes)
            await self._execute(launch, start)
        finally:
            start.drop()

    async def _execute(self, launch: Launch, start: Start) -> None:
        """From a stored start to a run in progress, or to the reason why there is none."""
        if self._called.done() or self._bench.leases.over(self.task):
            await self._unbegun(launch)
            return
        try:
            launching.make_room(launch)
        except OSError as error:
            words = f"the private directory of the run cannot be made: {error}"
            await self._never_ran(launch, NeverRan(words, passing=True))
            return
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
        await self._clear(launch)
        if stop := self._for_good:
            await self._make(Move.CANCEL, outcome=endings.unbegun(stop))
        else:
            await self._make(Move.UNASSIGN)

    async def _never_ran(self, launch: Launch, error: NeverRan) -> None:
        await self._clear(launch)
        if stop := self._for_good:
            await self._make(Move.CANCEL, outcome=endings.unbegun(stop))
        elif error.passing and self.task.retry_count < self.task.max_retries:
            self._log.warning("a start did not come about, trying again later", why=str(error))
            await self._make(Move.POSTPONE, **self._next_try())
        else:
            await self._make(Move.NEVER_RAN, outcome=endings.never_ran(error))

    async def _begin(self, launch: Launch, execution: Execution) -> None:
        self._launch, self._execution = launch, execution
        await self._make(
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
        found = await find_run(self._bench, self.task, launch, self._left)
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
            await self._make(Move.BEGIN, run_no=launch.run_no, started_at=self.task.assigned_at)
        await self._end(endings.lost(why, self._bench.clock.wall()))
        await self._clear(launch)

    # --- while it runs

    async def _follow(self, launch: Launch, execution: Execution) -> None:
        """From a run in progress to its stored end; or leave it, if it outlives the agent."""
        about_from_now_on(run=launch.run_no)
        backoff = self._bench.backoff()
        while True:
            self._launch, self._execution = launch, execution
            try:
                outcome = await self._outcome(execution)
                break
            except Exception as error:
                self._log.exception("an executor lost sight of a run; asking it again")
                await asyncio.wait({self._left}, timeout=backoff.next())
                found = await self._seek(launch, why=reason_of(error))
            if found is None:
                return
            execution = found
        if outcome:
            await self._end(outcome)
            try:
                await execution.forget()
            except Exception:  # it only remembers longer than it needs to
                self._log.exception("an executor could not let go of a run that has ended")
            await self._clear(launch)

    async def _outcome(self, execution: Execution) -> Outcome | None:
        """How it ended. None: it goes on without this agent."""
        assert self.task.started_at is not None, "a run that is followed has begun"
        return await outcome_of(
            Watch(
                execution=execution,
                timeout=self.task.timeout,
                started_at=self.task.started_at,
                clock=self._bench.clock,
                contact_left=lambda needed: self._bench.leases.contact_left(self.task, needed),
                called=self._called,
                stop=lambda: self._stop,
            )
        )

    # --- its end

    async def _end(self, outcome: Outcome) -> None:
        outcome = replace(outcome, ended_at=outcome.ended_at or self._bench.clock.wall())
        if outcome.reason is Reason.CANCELLED:
            await self._make(Move.CANCEL, outcome=outcome)
        elif outcome.reason is Reason.PREEMPTED:
            await self._make(Move.PREEMPT, outcome=outcome)
            await self._make(Move.RETURN)
        elif outcome.success:
            await self._make(Move.COMPLETE, outcome=outcome)
        elif self.task.retry_count < self.task.max_retries:
            await self._make(Move.RETRY, outcome=outcome, **self._next_try())
        else:
            await self._make(Move.FAIL, outcome=outcome)

    def _next_try(self) -> dict[str, Any]:
        return {
            "due_at": self._bench.clock.wall() + self.task.retry_delay,
            "retry_count": self.task.retry_count + 1,
        }

    async def _make(self, move: Move, *, outcome: Outcome | None = None, **changes: Any) -> None:
        """Make a move; a store that cannot keep it now (a full disk) is asked until it can.

        Raises Conflict if somebody else moved the task.
        """
        backoff = self._bench.backoff()
        while True:
            try:
                self.task = await self._bench.moves.make(
                    self.task, move, outcome=outcome, **changes
                )
                break
            except Conflict:
                raise
            except StoreError as error:
                self._log.error("a task's state cannot be saved, trying again", why=str(error))
                await self._bench.clock.sleep(backoff.next())
        if self.task.status in FINAL:
            words = {"why": outcome.error} if outcome and outcome.error else {}
            self._log.info(self.task.status.value, **words)

    @staticmethod
    async def _clear(launch: Launch) -> None:
        if not launching.clear_room(launch):
            await asyncio.to_thread(launching.clear_full_room, launch)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
