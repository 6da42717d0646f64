"""The interfaces between core and its plugins: what each side may ask of the other."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent_core.api.resources import Free
from agent_core.clock import Clock
from agent_core.inventory import Inventory
from agent_core.lifecycle import Status
from agent_core.models import (
    Change,
    Event,
    Key,
    Lease,
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
