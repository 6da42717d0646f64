"""The core without an agent around it: real SQLite, real pluggy, an executor turned by hand."""

import asyncio
import io
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pluggy
import structlog

from agent_core import log
from agent_core.backoff import Backoff
from agent_core.clock import Clock, SystemClock
from agent_core.hooks import Caller
from agent_core.hookspecs import Hooks, hookimpl
from agent_core.leases import Leases
from agent_core.local import Local
from agent_core.machine import Machine
from agent_core.models import Key, Launch, Task, Verdict
from agent_core.moves import Moves
from agent_core.protocols import PluginContext, Scheduler, Store
from agent_core.runner import Runner
from agent_core.sections import LogSection
from agent_core.survey import Survey
from agent_core.testing.executors import HandExecutor
from agent_core.workbench import Workbench
from agent_core.worker import Worker
from agent_core_plugins.priority_scheduler import PriorityScheduler, PrioritySchedulerSettings
from agent_core_plugins.sqlite_store import SqliteStore, SqliteStoreSettings

AHEAD = int(os.environ.get("AHEAD", "0"))
PATIENCE = 20.0  # seconds after which something counts as never happening


class Allow:
    """A site that allows everything, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[Key] = []

    @hookimpl
    async def validate(self, task: Task, launch: Launch) -> Verdict:
        self.asked.append(task.key)
        return Verdict.allow()


class Judge:
    """A site whose verdicts a test gives: by task id, a verdict, an error, or an event to await."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Any] = {}
        self.asked = asyncio.Event()

    @hookimpl
    async def validate(self, task: Task, launch: Launch) -> Any:
        self.asked.set()
        verdict = self.verdicts.get(task.id, Verdict.allow())
        if isinstance(verdict, asyncio.Event):
            await verdict.wait()
            return self.verdicts.get(task.id + " then", Verdict.allow())
        if isinstance(verdict, BaseException):
            raise verdict
        return verdict


class Troubled:
    """A Store on top of another: the next calls of a method fail, or stand still on either side."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.errors: dict[str, deque[BaseException | None]] = {}
        self.before: dict[str, asyncio.Event] = {}  # a call waits for it before it is made
        self.after: dict[str, asyncio.Event] = {}  # its answer waits for it
        self.entered: dict[str, asyncio.Event] = {}
        self.skip: dict[str, int] = {}  # calls that pass before one is held
        self.calls: list[str] = []
        self.given: list[tuple[Any, ...]] = []  # the arguments of those calls

    def fail(self, method: str, *errors: BaseException | None) -> None:
        self.errors.setdefault(method, deque()).extend(errors)

    def hold(self, method: str, *, before: bool = False, skip: int = 0) -> asyncio.Event:
        """Let one call wait until the event is set: the next, or the one after so many others."""
        self.skip[method] = skip
        gate = asyncio.Event()
        (self.before if before else self.after)[method] = gate
        self.entered[method] = asyncio.Event()
        return gate

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._store, name)
        if not callable(target):
            return target

        async def call(*args: Any, **named: Any) -> Any:
            self.calls.append(name)
            self.given.append(args)
            waiting = self.errors.get(name)
            if waiting and (error := waiting.popleft()) is not None:
                raise error
            passes = self.skip.get(name, 0) > 0
            if passes:
                self.skip[name] -= 1
            if not passes and (gate := self.before.pop(name, None)):
                self.entered[name].set()
                await gate.wait()
            answer = await target(*args, **named)
            if not passes and (gate := self.after.pop(name, None)):
                self.entered[name].set()
                await gate.wait()
            return answer

        return call


class GivenStore:
    """A plugin that gives this very store."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @hookimpl
    async def store(self) -> Any:
        return self._store


class GivenScheduler:
    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    @hookimpl
    def schedule(self) -> Any:
        return self._scheduler


def manager_of(**plugins: object) -> pluggy.PluginManager:
    """Registered so that the first named is asked first."""
    manager = pluggy.PluginManager("agent_core")
    manager.add_hookspecs(Hooks)
    for name, plugin in reversed(list(plugins.items())):
        manager.register(plugin, name=name)
    return manager


def context(directory: Path, clock: Clock, max_workers: int = 2) -> PluginContext:
    return PluginContext(
        agent_id="agent-1",
        machine_id="machine-1",
        state_dir=directory,
        runtime_dir=directory,
        max_workers=max_workers,
        clock=clock,
        log=structlog.get_logger("test"),
    )


def quick() -> Backoff:
    return Backoff(base=0.001, cap=0.002)


class Core:
    """One life of the core on one directory; `await Core.open(...)`."""

    def __init__(
        self,
        directory: Path,
        store: Any,
        clock: Clock,
        max_workers: int,
        plugins: dict[str, Any],
        labels: Mapping[str, str] | None = None,
        ahead: int = 0,
    ) -> None:
        self.ahead = ahead
        self.said = io.StringIO()  # what the agent logs
        log.configure(LogSection(), self.said)
        self.directory = directory
        self.store = store
        self.clock = clock
        self.max_workers = max_workers
        self.plugins = plugins
        self.executor: HandExecutor = plugins.setdefault("hand", HandExecutor())
        plugins.setdefault("judge", Judge())
        self.judge: Judge = plugins["judge"]
        settings = PrioritySchedulerSettings()
        scheduler = PriorityScheduler(settings, context(directory, clock, max_workers))
        plugins.setdefault("priority_scheduler", scheduler)
        self.hooks = Caller(manager_of(given_store=GivenStore(store), **plugins))
        self.grew = asyncio.Event()
        self.stored = 0
        self.bench = Workbench(
            hooks=self.hooks,
            moves=Moves(store, clock, self._event_stored, quick),
            clock=clock,
            leases=Leases(clock),
            machine=Machine(max_workers, labels or {}, clock),
            runs_dir=directory / "runs",
            backoff=quick,
        )
        self.scheduler: Scheduler = self.hooks.schedule()
        self.worker = Worker(self.bench, store, self.scheduler, ahead=ahead)
        self.survey = Survey(self.hooks, self.bench.machine, clock, self.worker.machine_changed)
        self.local = Local(store, self.worker, clock)
        self.loop: asyncio.Task[None] | None = None
        self.releasing: asyncio.Task[None] | None = None
        self.returning: asyncio.Task[None] | None = None

    def _event_stored(self) -> None:
        self.stored += 1
        self.grew.set()

    @classmethod
    async def open(
        cls,
        directory: Path,
        clock: Clock | None = None,
        max_workers: int = 2,
        labels: Mapping[str, str] | None = None,
        ahead: int = AHEAD,
        **plugins: Any,
    ) -> "Core":
        clock = clock or SystemClock()
        plugin = SqliteStore(SqliteStoreSettings(), context(directory, clock))
        store = Troubled(await plugin.store())
        return cls(directory, store, clock, max_workers, plugins, labels, ahead)

    async def again(self, **plugins: Any) -> "Core":
        """The next life: this one is killed, the store and the executor's runs stay."""
        await self.kill()
        # What a killed agent had handed to its writer is kept or not by the time that another opens
        # the file: here it is kept, once a later write is.
        await self.store._store.set_fact("life", "over")
        fresh = Troubled(self.store._store)
        plugins["hand"] = self.executor
        return Core(self.directory, fresh, self.clock, self.max_workers, plugins, ahead=self.ahead)

    def run(self) -> "asyncio.Task[None]":
        self.loop = asyncio.create_task(self.worker.run(), name="worker")
        self.releasing = asyncio.create_task(self.worker.dependencies.run(), name="dependencies")
        self.returning = asyncio.create_task(self.worker.returns.run(), name="returns")
        return self.loop

    async def start(self) -> "Core":
        await self.worker.recover()
        await self.survey.inventory()
        self.run()
        return self

    async def kill(self) -> None:
        await self.worker.abandon()
        for job in (self.loop, self.releasing, self.returning):
            if job:
                job.cancel()
                await asyncio.wait({job})
        self.loop = self.releasing = self.returning = None

    async def close(self) -> None:
        await self.kill()
        await self.store.close()

    async def add(self, *tasks: Task) -> list[Task]:
        """Stored, as a claim's or a submit's answer is."""
        return await self.store.add(tasks, {})

    async def bring(self, *tasks: Task) -> None:
        """Stored and admitted."""
        await self.worker.admit(await self.add(*tasks))

    async def get(self, task: Task) -> Task:
        found = await self.store.get(task.key)
        assert found is not None
        return found

    async def until_status(self, task: Task, *statuses: str) -> Task:
        async def reached() -> bool:
            return (await self.get(task)).status in statuses

        await until(reached)
        return await self.get(task)

    async def until_status_of(self, task_id: str, *statuses: str, source: str) -> Task:
        """Of a task that may not even be stored yet."""
        wanted = task(task_id, source=source)

        async def stored() -> bool:
            return await self.store.get(wanted.key) is not None

        await until(stored)
        return await self.until_status(wanted, *statuses)

    async def rooms(self) -> list[Path]:
        """What stands in the directory of the runs' own, once what was left is gone."""
        await self.bench.rooms.left()
        return list(self.bench.runs_dir.glob("*"))

    async def until_idle(self) -> None:
        """No runner is left."""

        async def idle() -> bool:
            return self.worker.slots.keys <= self.worker.slots.armed

        await until(idle)

    def runner(self, task: Task) -> Runner:
        return Runner(self.bench, task)

    async def events(self) -> list[tuple[str, str]]:
        return [
            (event.kind.value, event.key.task_id) for event in await self.store.outbox(limit=99)
        ]


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Returns when it holds; fails after `PATIENCE`."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = condition()
            if await answer if isinstance(answer, Awaitable) else answer:
                return
            await asyncio.sleep(0.002)


async def within(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE)


async def turns(count: int = 20) -> None:
    """Let everything that is ready run, for tests that something does not happen."""
    for _ in range(count):
        await asyncio.sleep(0)


def task(task_id: str = "t1", command: str = "true", **fields: Any) -> Task:
    """A task that a source claimed, unless `source` is said to be empty."""
    fields.setdefault("source", "server")
    fields.setdefault("attempt_id", "a1" if fields["source"] else "")
    return Task(id=task_id, command=command, **fields)
