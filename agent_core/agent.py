"""The composition root: settings to plugins to running agent, and its end."""

import asyncio
import contextlib
import ctypes
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from agent_core import plugins
from agent_core.claims import Source
from agent_core.clock import Clock, SystemClock
from agent_core.handle import Handle
from agent_core.hooks import Caller
from agent_core.leases import Leases
from agent_core.local import Local
from agent_core.log import get
from agent_core.machine import Machine
from agent_core.moves import Moves
from agent_core.protocols import PluginContext, Store
from agent_core.sections import AgentSection, LocalApiSection, PluginsSection, ShutdownSection
from agent_core.settings import Loaded
from agent_core.statedir import StateDirectory
from agent_core.survey import Survey
from agent_core.workbench import Workbench
from agent_core.worker import Worker

PR_SET_DUMPABLE = 4
LAST_WORDS = 5.0  # seconds for plugins and store to close after the grace


class Agent:
    """One agent of one state directory. Two of them fit in one process.

    It ends by a signal (SIGTERM, SIGINT), by `stop()`, or loudly when a part of it fails.
    """

    def __init__(self, loaded: Loaded, clock: Clock | None = None) -> None:
        self._loaded = loaded
        self._clock = clock or SystemClock()
        self._section = loaded.section("agent", AgentSection)
        self._grace = loaded.section("shutdown", ShutdownSection).grace
        loaded.section("local_api", LocalApiSection)  # only checked: nothing listens there yet
        self._stops = 0
        self._stopped = asyncio.Event()
        self._hurried = asyncio.Event()
        self._log = get("agent")

    def stop(self) -> None:
        """Once: claim no more, hand over, send what waits. Twice: leave at once."""
        self._stops += 1
        self._stopped.set()
        if self._stops > 1:
            self._hurried.set()

    async def run(self) -> int:
        """Run until stopped; the exit code. Raises RemoteGPUError if it cannot start."""
        _hide_memory()
        state = StateDirectory.open(self._section)
        try:
            for warning in state.warnings:
                self._log.warning(warning)
            infos = plugins.discover(self._loaded.section("plugins", PluginsSection))
            manager = plugins.build(infos, self._loaded, self._context_of(state))
            hooks = Caller(manager)
            store = await hooks.store()
            try:
                with self._signals():
                    return await self._work(state, hooks, store)
            finally:
                await store.close()
        finally:
            state.close()

    def _context_of(self, state: StateDirectory) -> Callable[[str], PluginContext]:
        def context(name: str) -> PluginContext:
            return PluginContext(
                agent_id=state.agent_id,
                machine_id=state.machine_id,
                state_dir=state.path,
                runtime_dir=state.runtime_dir,
                max_workers=self._section.max_workers,
                clock=self._clock,
                log=get(name),
            )

        return context

    async def _work(self, state: StateDirectory, hooks: Caller, store: Store) -> int:
        grew = asyncio.Event()
        bench = Workbench(
            hooks=hooks,
            moves=Moves(store, self._clock, grew.set),
            clock=self._clock,
            leases=Leases(self._clock),
            machine=Machine(self._section.max_workers, self._section.labels, self._clock),
            runs_dir=state.path / "runs",
        )
        worker = Worker(bench, store, hooks.schedule(), ahead=self._section.arm_ahead)
        survey = Survey(hooks, bench.machine, self._clock, worker.machine_changed)
        handle = Handle(
            agent_id=state.agent_id,
            machine_id=state.machine_id,
            max_workers=self._section.max_workers,
            labels=self._section.labels,
            store=store,
            worker=worker,
            hooks=hooks,
            survey=survey,
            local=Local(store, worker, self._clock),
            grew=grew,
        )
        jobs: list[asyncio.Task[Any]] = []
        serving: list[asyncio.Task[Any]] = []
        try:
            await worker.recover()  # before anybody can ask for a task that it has not seen yet
            await survey.inventory()  # before anything starts that asks for a device
            serving += [_named(f"serve {name}", job) for name, job in hooks.serving(handle)]
            self._log.info("ready", agent=state.agent_id, machine=state.machine_id)
            claims = [
                _named(f"claim {name}", Source(name, bench, worker).run(handle.stopping))
                for name in hooks.sources
            ]
            jobs += [_named("worker", worker.run()), _named("survey", survey.run()), *claims]
            jobs.append(_named("dependencies", worker.dependencies.run()))
            jobs.append(_named("returns", worker.returns.run()))
            failed = await self._until_stopped([*jobs, *serving])
            handle.stopping.set()
            if not failed:
                await self._leave(worker, store, handle, claims)
            return 1 if failed else 0
        finally:
            handle.stopping.set()
            await worker.abandon()
            await self._end(jobs)
            await self._end(serving)

    async def _until_stopped(self, jobs: list["asyncio.Task[Any]"]) -> bool:
        """True if a part of the agent ended by itself: none may."""
        stopped = _named("stop", self._stopped.wait())
        done, _ = await asyncio.wait({stopped, *jobs}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for job in done - {stopped}:
            self._log.error("a part of the agent ended, so it stops", part=job.get_name())
        return bool(done - {stopped})

    async def _leave(
        self, worker: Worker, store: Store, handle: Handle, claims: list["asyncio.Task[Any]"]
    ) -> None:
        """Within the grace: answers awaited, runs handed over, the rest given back and told."""
        self._log.info("stopping; once more to leave at once", grace=self._grace)

        async def gently() -> None:
            await worker.leave()
            if claims:
                await asyncio.wait(claims)
            await worker.give_back()
            settled = handle.settled.next()
            while await store.outbox(limit=1):
                await settled
                settled = handle.settled.next()

        leaving = _named("leave", gently())
        hurried = _named("hurry", self._hurried.wait())
        done, _ = await asyncio.wait(
            {leaving, hurried}, timeout=self._grace, return_when=asyncio.FIRST_COMPLETED
        )
        await self._end([hurried, leaving])
        if leaving not in done:
            self._log.warning("leaving before everything was told; it is kept for the next start")

    async def _end(self, jobs: list["asyncio.Task[Any]"]) -> None:
        """End what still runs. What failed while the agent was leaving is said, not lost."""
        for job in jobs:
            job.cancel()
        if not jobs:
            return
        done, _ = await asyncio.wait(jobs, timeout=LAST_WORDS)
        for job in done:
            if not job.cancelled() and (error := job.exception()):
                self._log.error("a part of the agent failed", part=job.get_name(), exc_info=error)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def _named(name: str, job: Coroutine[Any, Any, object]) -> "asyncio.Task[Any]":
    return asyncio.create_task(job, name=name)


def _hide_memory() -> None:
    """Other processes of our user, tasks among them, must not read our memory or environment."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
