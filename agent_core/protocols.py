"""The interfaces between core and its plugins: what each side may ask of the other."""

import asyncio
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from agent_core.api.resources import Free
from agent_core.api.wire import Json
from agent_core.clock import Clock, Instant
from agent_core.inventory import Inventory
from agent_core.lifecycle import Status
from agent_core.models import (
    Change,
    Event,
    Key,
    Lease,
    Outcome,
    Piece,
    Plan,
    Progress,
    Receipt,
    Running,
    Stream,
    Task,
    TaskRun,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginContext:
    """What a plugin is given beside its settings section when it is built."""

    agent_id: str
    machine_id: str
    state_dir: Path  # ours alone, on disk, 0700
    runtime_dir: Path  # on tmpfs where there is one; shared, so make a directory of your own in it
    max_workers: int
    clock: Clock
    log: Any  # a structlog logger bound to the plugin's name


class Store(Protocol):
    """Remembers tasks, events and facts. Every answer comes after COMMIT, never before.

    All methods raise StoreFull when there is no room and StoreError for everything else.
    """

    stream: str  # random id of this very database; event numbers rise within it

    async def add(self, tasks: Sequence[Task], facts: Mapping[str, str]) -> list[Task]:
        """Keep new tasks and the facts that came with them, in one transaction.

        Returns those that were new; a key that exists already is left as it is.
        """

    async def save(
        self,
        before: Task,
        changes: Mapping[str, object],
        event: Event | None = None,
        ended_run: TaskRun | None = None,
    ) -> bool:
        """Change the named fields if the task still is as `before` says, in one transaction.

        Compares status and start_id. `changes` maps names of Task's second group to values. The
        event (its seq is given here) and the run that ended before another follows are kept with
        it. False, and nothing kept, if the task is otherwise by now or does not exist.
        """

    async def save_all(self, changes: Sequence[Change]) -> list[bool]:
        """`save` for many in one transaction, in this order; each has its own answer.

        One that finds its task otherwise keeps nothing and changes nothing for the others. An
        error means that none of them is kept.
        """

    async def get(self, key: Key) -> Task | None:
        """One task, its outcome with output."""

    async def tasks(
        self, statuses: Collection[Status] = (), *, limit: int = 1000, after: Key | None = None
    ) -> list[Task]:
        """Tasks in these states (none named: all), oldest first, outcomes without output."""

    async def due(
        self, now: float, *, limit: int, skip: Collection[Key] = frozenset()
    ) -> list[Task]:
        """Pending tasks with due_at <= now, by (priority, created_at), without those in skip."""

    async def next_due(self, now: float) -> float | None:
        """The earliest due_at after now of a pending task."""

    async def runs(self, key: Key) -> list[TaskRun]:
        """The runs that ended before the current one, in order, with output."""

    async def outbox(
        self,
        *,
        limit: int,
        skip: Collection[Key] = frozenset(),
        skip_sources: Collection[str] = frozenset(),
    ) -> list[Event]:
        """Events not yet settled, by seq, without those of the tasks and sources to skip.

        At most `limit`, and no more than their outcomes' output fits into a few MiB; one at least.
        """

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        """Delete what was TAKEN or STALE, keep REFUSED as a dead letter, leave RETRY."""

    async def dead_letters(self, *, limit: int = 1000) -> list[tuple[Event, Receipt]]:
        """Events refused for ever, and why."""

    async def get_fact(self, name: str) -> str | None: ...

    async def set_fact(self, name: str, value: str) -> None: ...

    async def close(self) -> None:
        """Finish what was asked, then let go of file and lock."""


class Scheduler(Protocol):
    """Who is next. Plain methods, no I/O: it is asked on every free slot."""

    def add(self, task: Task) -> None:
        """The task waits for a slot from now on. A key that waits already is replaced."""

    def remove(self, key: Key) -> None:
        """It waits no more; an unknown key is no error."""

    def next(self, running: Collection[Running], free: Free) -> Plan:
        """The waiting tasks to start now, in order: as many as fit `free` together.

        Also asked for slots that are not free yet, so that the next starts can be stored ahead:
        then without devices. They stay until removed. Where no slot is free it may name running
        tasks that are to make room for more urgent ones; those that are ending make room already.
        """

    def __len__(self) -> int:
        """How many wait."""


class Execution(ABC):
    """One run in progress. A base class: an executor overrides what it can do better."""

    handle: Mapping[str, Json]  # by which `reattach` finds the run again after a restart
    started_at: Instant | None = None  # when its process began, if the executor knows
    grace: float = 10.0  # seconds between TERM and KILL
    terminated: str = ""  # the words of an earlier agent's `terminate`, if they are known
    survives: ClassVar[bool] = False  # goes on when the agent is gone

    @abstractmethod
    async def wait(self) -> Outcome:
        """How the run ended; returns when nothing of its process tree is left.

        Says exited, signal, oom or lost; that a timeout or a cancel was behind it is the runner's
        to know. May be awaited more than once; cancelling the wait does nothing to the run.
        """

    def outcome(self) -> "asyncio.Future[Outcome]":
        """`wait`, begun at once, as a future of the caller's own.

        An executor that hears of ends overrides it: then no run needs a task that waits for it.
        """
        return asyncio.ensure_future(self.wait())

    @abstractmethod
    async def signal(self, signum: int) -> bool:
        """Send a signal to the whole tree. False if the run's main process had ended by itself."""

    async def terminate(self, words: str) -> bool:
        """`signal` with TERM, by which a run is asked to end, for a reason in a few words.

        An executor that can keeps the words of the first time with the run, and gives them back as
        `terminated` to an agent that finds it again.
        """
        return await self.signal(signal.SIGTERM)

    async def tail(self, stream: Stream, limit: int) -> bytes:
        """The last bytes of output so far, at most `limit`."""
        return b""

    async def output(self, stream: Stream, offset: int, limit: int) -> Piece:
        """What was printed from byte `offset` of the stream on, at most `limit` bytes.

        Also after the end, until it is forgotten. The piece begins behind `offset` where what lies
        between was not kept; it is empty, with a `total` of no more than `offset`, where nothing
        follows yet. Nothing at all from an executor that shows no output before the end.
        """
        return Piece(offset, b"", 0)

    async def forget(self) -> None:
        """The end is committed: let go of what was kept to find the run again."""


class Ahead(ABC):
    """A start that an executor can take before there is a slot for it; `execute` may answer so.

    Awaited, it begins at once and gives the Execution, like any other start. Dropped without a word
    it must not be once it was handed over: it is recalled or awaited.
    """

    @abstractmethod
    def __await__(self) -> Generator[Any, None, Execution]: ...

    @abstractmethod
    def hand_over(
        self, until: float, began: Callable[[], None], lost: Callable[[], None] = lambda: None
    ) -> bool:
        """Let it begin by itself, in the place of a run of this executor that has ended.

        Those handed over begin in that order, one for each run that held a slot and nothing else
        and that nobody told to end; none after the boot time `until`. `began` is called when it
        did, before its predecessor's `outcome` is there, and unless its awaiting tells it. `lost`
        is called when it waits no more and did not begin, as far as is known: `recall` tells.
        False: it cannot be taken now, and begins only when it is awaited.
        """

    @abstractmethod
    async def recall(self) -> bool:
        """It must not begin by itself any more. False: it has begun and said so; await it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """An attempt that is still ours to bring to an end."""

    key: Key
    source: str
    status: Status
    begun: bool  # a run of this attempt has begun at some time
    run_no: int = 0  # of the current run, or the last one
    lease: Lease | None
    timeout: float  # seconds, of one run


class AgentHandle(Protocol):
    """What a plugin that lives beside the work may ask of the agent."""

    agent_id: str
    machine_id: str
    max_workers: int
    labels: Mapping[str, str]  # of this machine, by its settings
    executors: Sequence[str]  # the enabled ones, in the order in which they are asked
    stream: str  # the store's
    stopping: asyncio.Event  # set once: no more claims; running work is handed over

    async def get(self, key: Key) -> Task | None: ...

    async def tasks(
        self, statuses: Collection[Status] = (), *, limit: int = 1000, after: Key | None = None
    ) -> list[Task]: ...

    async def submit(self, task: Task) -> Task:
        """A local task, which no source gave, as it is stored; with an id, if it had none.

        It is judged like any other: a refusal is its end, not an error. With `depends_on` it waits
        until those have completed. Raises NotAccepted (an id that exists or that nobody knows, a
        value that cannot be meant) and StoreError.
        """

    async def cancel(self, key: Key, *, code: int, reason: str) -> bool:
        """End it, wherever it stands, with these words.

        False if it is final, unknown, or was left to run on by an agent that stops. Returns when
        the request is noted: a running task still has its grace.
        """

    def held(self, source: str) -> list[Held]:
        """The attempts of one source that are not final."""

    def renewed(self, key: Key, lease: Lease) -> None:
        """The server extended this attempt; tasks that waited for that may begin."""

    async def progress(self, key: Key) -> Progress | None:
        """How far a running task is; None if it does not run."""

    async def output(
        self, key: Key, run_no: int, stream: Stream, offset: int, limit: int
    ) -> Piece | None:
        """What that run printed, as `Execution.output` says; None if it does not run here now."""

    async def outbox(
        self,
        *,
        limit: int,
        skip: Collection[Key] = frozenset(),
        skip_sources: Collection[str] = frozenset(),
    ) -> list[Event]: ...

    async def outbox_grew(self) -> None:
        """Returns when an event was stored since the last return."""

    async def report(self, events: Sequence[Event]) -> list[Receipt]:
        """Hand events to the plugin that owns them; one receipt an event, in order."""

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        """What the receipts say is done: STALE for a task that is not final ends it."""

    async def get_fact(self, name: str) -> str | None: ...

    async def set_fact(self, name: str, value: str) -> None: ...

    async def inventory(self) -> Inventory: ...
