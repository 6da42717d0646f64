"""Whatever comes, ends, fails, is cancelled, preempted or killed: what always holds of the core."""

import asyncio
import tempfile
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_core.api.resources import Resources
from agent_core.execution import Execution
from agent_core.hookspecs import hookimpl
from agent_core.inventory import Gpu, Inventory
from agent_core.lifecycle import FINAL, Status
from agent_core.models import (
    Key,
    Launch,
    Reason,
    Task,
)
from agent_core.testing.executors import HandRun, HandStart, HeirExecutor
from tests.agent_core.core import Core, task, turns

SLOTS = 3
MOMENT = 0.007  # seconds in which the core goes on by itself between two steps


class Watched(HeirExecutor):
    """Looks at each start, at the moment at which it happens."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[Key, Task] = {}  # as they were submitted
        self.store: Any = None
        self.wrong: list[str] = []
        self.began: set[tuple[Key, int]] = set()
        self.followed = 0  # runs that began by themselves

    @property
    def live(self) -> list[HandRun]:
        return [run for run in self.runs.values() if run.live]

    async def _start(self, launch: Launch) -> Execution:
        await self._look(launch)
        return await super()._start(launch)

    async def _look(self, launch: Launch) -> None:
        run = (launch.key, launch.run_no)
        if run in self.began:
            self.wrong.append(f"{run} began twice")
        self.began.add(run)
        held = [device for each in self.live for device in each.launch.devices]
        if set(held) & set(launch.devices):
            self.wrong.append(f"{run} has a device of another")
        if len(launch.devices) != launch.resources.gpus:
            self.wrong.append(f"{run} has not what it asked for")
        if len(self.live) >= SLOTS:  # and what began by itself has the place of one that is over
            self.wrong.append(f"{run} began where no slot was free")
        for name in self.tasks[launch.key].depends_on if not launch.key.attempt_id else ():
            other = await self.store.get(Key(name, ""))
            if other is None or other.status is not Status.COMPLETED:
                self.wrong.append(f"{run} began before the end of {name} was stored")


class Gpus:
    @hookimpl
    async def inventory(self) -> Inventory:
        gpus = tuple(Gpu(index=n, uuid=f"GPU-{n}", name="NVIDIA H100") for n in range(3))
        return Inventory(cpu_cores=4, memory_total=2**34, gpus=gpus)


wishes = st.one_of(
    st.just(Resources()),
    st.builds(Resources, gpus=st.integers(1, 3)),
    st.builds(Resources, cpus=st.sampled_from([1.0, 3.0])),
)
TAKEN_AHEAD = {"priority": 5, "resources": Resources(), "max_retries": 0, "claimed": True}
picks = st.integers(0, 10**6)
crowds = st.tuples(
    st.just("crowd"), st.lists(st.integers(1, 10), min_size=SLOTS + 1, max_size=3 * SLOTS)
)
steps = st.one_of(
    crowds,
    st.tuples(
        st.just("submit"),
        st.fixed_dictionaries(
            {
                "priority": st.integers(1, 10),
                "resources": wishes,
                "max_retries": st.integers(0, 1),
                "after": st.lists(picks, max_size=2),
                "claimed": st.booleans(),
            }
        ),
    ),
    st.tuples(st.just("end"), st.tuples(picks, st.sampled_from([0, 0, 0, 1]), st.integers(0, 5))),
    st.tuples(st.just("lose"), st.tuples(st.booleans(), picks)),
    st.tuples(st.just("cancel"), picks),
    st.tuples(st.just("kill"), st.none()),
    st.tuples(st.just("in_vain"), st.tuples(st.integers(1, 6), st.sampled_from([0.0, MOMENT]))),
)


class Stream:
    """One life after another of a core that is given these steps."""

    def __init__(self, core: Core, executor: Watched) -> None:
        self.core = core
        self.executor = executor
        self.given: list[Task] = []
        self.untold: list[tuple[HandRun, HandStart, int]] = []

    async def submit(self, what: dict[str, Any]) -> None:
        fields = {name: what[name] for name in ("priority", "resources", "max_retries")}
        name = f"t{len(self.given)}"
        if what["claimed"]:
            made = task(name, retry_delay=0.0, created_at=float(len(self.given)), **fields)
        else:
            local = [each.id for each in self.given if not each.source]
            after = {local[pick % len(local)] for pick in what["after"]} if local else set()
            made = task(name, source="", retry_delay=0.0, depends_on=tuple(sorted(after)), **fields)
        self.given.append(made)
        self.executor.tasks[made.key] = made
        if made.source:
            await self.core.bring(made)
        else:
            await self.core.local.submit(made)

    async def crowd(self, priorities: list[int]) -> None:
        """As many as let some be handed over, if only slots are asked for."""
        for priority in priorities:
            await self.submit({**TAKEN_AHEAD, "priority": priority})

    async def end(self, what: tuple[int, int, int]) -> None:
        """One ends; if another follows it, that may be told later than the next thing happens."""
        if live := self.executor.live:
            run = live[what[0] % len(live)]
            if heir := await self._follows(run):
                self.untold.append((run, heir, what[1]))
                if what[2] < 3:
                    await turns(what[2])
                    self.tell()
            else:
                run.end(what[1])

    def tell(self) -> None:
        """What happened and was not told: who follows, and then who ended."""
        untold, self.untold = self.untold, []
        for run, heir, code in untold:
            heir.tell()
            run.end(code)

    async def _follows(self, run: HandRun) -> HandStart | None:
        """Who begins where this one ends, and that is not told yet."""
        if run.signals or run.launch.resources or not (heir := self.executor.heir()):
            return None
        run.over = True
        await heir.begin()
        self.executor.followed += 1
        return heir

    async def lose(self, what: tuple[bool, int]) -> None:
        """All that was handed over is lost; the first may have begun unheard."""
        live = self.executor.live
        run = live[what[1] % len(live)] if live and what[0] else None
        heir = await self._follows(run) if run else None
        if heir:
            heir.lose()
        self.executor.loses_all()
        await turns(3)  # nothing is heard of an end before it was asked who has its place
        if run and heir:
            run.end(0)

    async def cancel(self, pick: int) -> None:
        if self.given:
            key = self.given[pick % len(self.given)].key
            await self.core.worker.cancel(key, code=1, reason="by Ada")

    async def kill(self, _: None) -> None:
        self.executor.handed.clear()  # nothing begins by itself once its agent is gone
        untold, self.untold = self.untold, []
        self.core = await self.core.again(gpus=Gpus())
        self.executor.store = self.core.store._store
        for run, _, code in untold:
            run.end(code)  # the next agent hears of both when it asks
        await self.core.start()

    async def in_vain(self, what: tuple[int, float]) -> None:
        """Some are taken ahead, and all that can go back after a while do."""
        for _ in range(what[0]):
            await self.submit(TAKEN_AHEAD)
        await asyncio.sleep(what[1])  # their starts are stored, or just about to be
        returns = self.core.worker.returns
        returns.heard("server", takes_back=True)
        returns._give_back(returns._in_vain())

    async def granted_again(self) -> bool:
        """What was given back comes again, as from a server that has nobody else."""
        last = {each.id: each for each in self.given if each.source}
        for each in last.values():
            ended = await self.core.get(each)
            if ended.outcome and ended.outcome.reason is Reason.RELEASED:
                assert (each.key, 1) not in self.executor.began, "it had begun"
                again = replace(each, attempt_id=f"a{int(each.attempt_id[1:]) + 1}")
                self.given.append(again)
                self.executor.tasks[again.key] = again
                await self.core.bring(again)
                return True
        return False

    async def settled(self) -> None:
        """In a few turns whoever is less urgent than somebody who came is taken back."""
        for _ in range(200):
            if not self.overtaken():
                return
            await turns(1)
        raise AssertionError(f"{self.overtaken()} are overtaken by those handed over")

    def overtaken(self) -> list[str]:
        """Who waits for a slot alone, while less urgent ones are handed over."""
        handed = {each.launch.key for each in self.executor.handed}
        least = max((self.executor.tasks[key].priority for key in handed), default=0)
        return [
            key.task_id
            for key in self.core.worker.waiting.by_urgency()
            if key not in handed and not self.executor.tasks[key].resources
            if self.executor.tasks[key].priority < least
        ]

    async def drain(self) -> None:
        """Nothing more comes, and everything that runs ends: everybody has a turn."""
        unfinished = set(Status) - FINAL
        self.tell()
        async with asyncio.timeout(20):
            while await self.granted_again() or await self.core.store.tasks(unfinished, limit=1):
                for n in range(len(self.executor.live)):
                    await self.end((n, 0, n))
                await asyncio.sleep(MOMENT)

    async def check(self) -> None:
        ends = {each.id: await self.core.get(each) for each in self.given}
        for name, ended in ends.items():
            assert ended.outcome
            assert (ended.outcome.reason is Reason.RELEASED) is False
            failed = [
                each for each in ended.depends_on if ends[each].status is not Status.COMPLETED
            ]
            if ended.source or ended.status is Status.CANCELLED:
                continue
            assert (ended.outcome.reason is Reason.DEPENDENCY) == bool(failed), name
            assert ended.retry_count <= ended.max_retries
            assert ended.run_no == max(
                (no for key, no in self.executor.began if key == ended.key), default=0
            )
        assert self.core.bench.machine.free_slots == SLOTS
        assert len(self.core.bench.machine.free.devices) == 3


async def lived(directory: Path, ahead: int, given_steps: list[tuple[str, Any]]) -> None:
    executor = Watched()
    core = await Core.open(directory, max_workers=SLOTS, ahead=ahead, hand=executor, gpus=Gpus())
    executor.store = core.store._store
    stream = Stream(await core.start(), executor)
    try:
        for name, what in given_steps:
            before = stream.untold
            step: Awaitable[None] = getattr(stream, name)(what)
            await step
            if before and before is stream.untold:
                await turns(1)
                stream.tell()
            await turns(3)
            if name != "submit":
                await asyncio.sleep(MOMENT)
                await stream.settled()
            assert executor.wrong == []
        await stream.drain()
        await stream.core.until_idle()
        assert executor.wrong == []
        await stream.check()
    finally:
        await stream.core.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([0, 4]), crowds, st.lists(steps, max_size=30))
def test_nothing_runs_twice_holds_what_another_holds_or_begins_too_early_and_all_have_a_turn(
    ahead: int, crowd: tuple[str, list[int]], given_steps: list[tuple[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(lived(Path(directory), ahead, [crowd, *given_steps]))
