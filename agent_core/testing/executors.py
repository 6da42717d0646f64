"""An executor turned by hand, for tests of whatever stands around a run: nothing is forked."""

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping

from agent_core.api.wire import Json
from agent_core.clock import Instant
from agent_core.errors import RemoteGPUError
from agent_core.execution import Ahead, Execution
from agent_core.hookspecs import hookimpl
from agent_core.models import Launch, Lost, NeverStarted, Outcome, Piece, Reason, Stream

PATIENCE = 20.0  # seconds after which a start that a test waits for counts as one that never comes
Found = Execution | NeverStarted | Lost


class HandRun(Execution):
    """One run. It ends when the test says so, or by a signal where `deaf` is not set."""

    def __init__(self, launch: Launch, handle: Mapping[str, Json], *, outlives: bool) -> None:
        self.launch = launch
        self.handle = handle
        self.grace = 0.01
        self.signals: list[int] = []  # as they came
        self.deaf = False  # a TERM does nothing to it
        self.over = False  # it has ended, and nobody was told so yet
        self.printed = b""
        self.forgotten = False
        self.errors: dict[str, deque[BaseException]] = {}  # by method: raised, one a call
        self.survives = outlives  # type: ignore[misc]  # each run its own, in tests
        self._ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._signalled = asyncio.Event()

    # --- what a test does

    def end(self, exit_code: int = 0, *, outcome: Outcome | None = None) -> None:
        if not self._ended.done():
            self._ended.set_result(outcome or Outcome(reason=Reason.EXITED, exit_code=exit_code))

    def fail(self, method: str, *errors: BaseException) -> None:
        """The next calls of wait, signal, tail or forget raise these."""
        self.errors.setdefault(method, deque()).extend(errors)

    @property
    def live(self) -> bool:
        return not (self.over or self._ended.done())

    async def signalled(self) -> int:
        """The last signal, once there was one."""
        async with asyncio.timeout(PATIENCE):
            await self._signalled.wait()
        return self.signals[-1]

    # --- what core asks

    async def wait(self) -> Outcome:
        self._raise("wait")
        return await asyncio.shield(self._ended)

    async def signal(self, signum: int) -> bool:
        self._raise("signal")
        if self.over or self._ended.done():
            return False
        self.signals.append(signum)
        self._signalled.set()
        if signum == signal.SIGKILL or not self.deaf:
            name = signal.Signals(signum).name
            self.end(outcome=Outcome(reason=Reason.SIGNAL, exit_code=128 + signum, signal=name))
        return True

    async def terminate(self, words: str) -> bool:
        done = await self.signal(signal.SIGTERM)
        if done:
            self.terminated = self.terminated or words
        return done

    async def output(self, stream: Stream, offset: int, limit: int) -> Piece:
        printed = self.printed if stream == "stdout" else b""
        return Piece(offset, printed[offset : offset + limit], len(printed))

    async def tail(self, stream: Stream, limit: int) -> bytes:
        self._raise("tail")
        return self.printed[-limit:]

    async def forget(self) -> None:
        self._raise("forget")
        self.forgotten = True

    def _raise(self, method: str) -> None:
        if waiting := self.errors.get(method):
            raise waiting.popleft()


class HandExecutor:
    """A plugin whose runs begin at once and end by a test's word.

    It outlives the agents of a test: give the same one to the next agent, and `reattach` finds
    what `execute` began. `outlives=False`: its runs are an agent's children.
    """

    def __init__(
        self, settings: object = None, context: object = None, *, outlives: bool = True
    ) -> None:
        self.outlives = outlives
        self.runs: dict[str, HandRun] = {}  # by start id
        self.takes = True  # False: every task is somebody else's
        self.start_errors: deque[BaseException] = deque()  # raised by the next starts
        self.began_anyway = False  # those starts began a run before they raised
        self.answers: deque[Found | BaseException] = deque()  # of the next reattach calls
        self.asked: list[tuple[str, bool]] = []  # start id and `running` of each reattach
        self.gate: asyncio.Event | None = None  # starts and reattach wait for it
        self.waiting = asyncio.Event()  # somebody stands before the gate
        self.started_at: Instant | None = None  # told of the next runs
        self.exit_code: int | None = None  # the next runs end with it at once
        self._new: asyncio.Queue[HandRun] = asyncio.Queue()

    async def next_run(self) -> HandRun:
        """The next run that begins, in order."""
        return await asyncio.wait_for(self._new.get(), PATIENCE)

    @hookimpl
    def execute(self, launch: Launch) -> Awaitable[Execution] | None:
        return self._start(launch) if self.takes else None

    @hookimpl
    async def reattach(self, launch: Launch, running: bool) -> Found:
        self.asked.append((launch.start_id, running))
        await self._pass_gate()
        if self.answers:
            answer = self.answers.popleft()
            if isinstance(answer, BaseException):
                raise answer
            return answer
        run = self.runs.get(launch.start_id)
        if run is None:
            return NeverStarted()
        if run.forgotten:
            raise RemoteGPUError(f"the start {launch.start_id} was forgotten and is asked for")
        return run

    async def _start(self, launch: Launch) -> Execution:
        await self._pass_gate()
        error = self.start_errors.popleft() if self.start_errors else None
        if error is not None and not self.began_anyway:
            raise error
        run = HandRun(launch, {"start": launch.start_id}, outlives=self.outlives)
        run.started_at = self.started_at
        if self.exit_code is not None:
            run.end(self.exit_code)
        self.runs[launch.start_id] = run
        self._new.put_nowait(run)
        if error is not None:
            raise error
        return run

    async def _pass_gate(self) -> None:
        self.waiting.set()
        if self.gate is not None:
            await self.gate.wait()


class HandStart(Ahead):
    """Begins when it is awaited, or when a test says that a run's place is passed on to it."""

    def __init__(self, executor: "HeirExecutor", launch: Launch) -> None:
        self.executor = executor
        self.launch = launch
        self.until = 0.0
        self.run: Execution | None = None
        self._began: Callable[[], None] | None = None
        self._lost: Callable[[], None] = lambda: None

    def __await__(self) -> Generator[object, None, Execution]:
        return self._begin().__await__()

    async def _begin(self) -> Execution:
        self._began = None  # whoever awaits it needs no other word
        self._wait_no_more()
        await self.begin()
        assert self.run
        return self.run

    def hand_over(
        self, until: float, began: Callable[[], None], lost: Callable[[], None] = lambda: None
    ) -> bool:
        if not self.executor.takes_ahead:
            return False
        assert self not in self.executor.handed, "it has it already"
        self.until, self._began, self._lost = until, began, lost
        self.executor.handed.append(self)
        return True

    async def recall(self) -> bool:
        executor = self.executor
        if executor.recalls:
            await executor.recalls.wait()
        if executor.recall_errors:
            raise executor.recall_errors.popleft()
        self._wait_no_more()
        self.tell()
        return self.run is None

    async def begin(self) -> None:
        """It runs from now on, and nobody is told."""
        if self.run is None:
            self.run = await self.executor._start(self.launch)

    def tell(self) -> None:
        """Say, once, that it began, if it did."""
        if self.run and (began := self._began):
            self._began = None
            began()

    def lose(self) -> None:
        """It waits no more, and whether it began is not known."""
        self._wait_no_more()
        self._lost()

    def _wait_no_more(self) -> None:
        if self in self.executor.handed:
            self.executor.handed.remove(self)


class HeirExecutor(HandExecutor):
    """One that can begin a start by itself where a run of it ends: at a test's word."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: list[HandStart] = []  # in their order
        self.takes_ahead = True
        self.recalls: asyncio.Event | None = None  # recalls wait for it
        self.recall_errors: deque[BaseException] = deque()  # raised by the next recalls

    @hookimpl
    def execute(self, launch: Launch) -> Awaitable[Execution] | None:
        return HandStart(self, launch) if self.takes else None

    def heir(self, now: float = 0.0) -> HandStart | None:
        """Who begins when a run ends at that boot time; it waits no more."""
        start = next((each for each in self.handed if now < each.until), None)
        if start:
            self.handed.remove(start)
        return start

    async def passes_on(self) -> HandRun:
        """The run that begins where another has ended, whose end is to be told by the test."""
        start = self.heir()
        assert start, "nobody was handed over"
        await start.begin()
        start.tell()
        return await self.next_run()

    def loses_all(self) -> None:
        """Those handed over wait no more: whoever had them is gone."""
        lost, self.handed = self.handed, []
        for start in lost:
            start.lose()
