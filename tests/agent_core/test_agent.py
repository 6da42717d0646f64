"""One agent, from its settings to its end: what it waits for, what it hands over, what ends it."""

import asyncio
import ctypes
import io
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_core import log
from agent_core.agent import Agent
from agent_core.errors import PluginError, StateDirectoryError
from agent_core.lifecycle import Status
from agent_core.models import Outcome, Task
from agent_core.plugins import DEFAULTS
from agent_core.sections import LogSection
from agent_core.settings import load
from agent_core.testing.executors import HandRun
from tests.agent_core.core import task, until, within
from tests.agent_core.residents import Hand, Resident, Work

OURS = ("sqlite_store", "priority_scheduler", "syncer")
ENTRIES = """[agent_core]
hand = tests.agent_core.residents:Hand
site = tests.agent_core.residents:Site
work = tests.agent_core.residents:Work
broken_store = tests.agent_core.residents:BrokenStore
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The residents come by the door of every plugin: a distribution with entry points."""
    info = tmp_path / "site-packages" / "residents-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: residents\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    yield
    Resident.made.clear()
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: the tests' process is no agent


class House:
    """Agents of one directory, one after another."""

    def __init__(self, directory: Path, runtime: Path) -> None:
        self.runtime = runtime
        self.state = directory / "state"
        self.state.mkdir(mode=0o700, parents=True)
        self.file = directory / "settings.toml"
        self.said = io.StringIO()
        log.configure(LogSection(), self.said)
        self.agent: Agent | None = None
        self.job: asyncio.Task[int] | None = None
        self.write()

    def write(self, *, grace: float = 10.0, extra: str = "", also: str = "") -> None:
        disabled = ", ".join(f'"{name}"' for name in DEFAULTS if name not in OURS)
        self.file.write_text(
            f'[agent]\nstate_dir = "{self.state}"\nruntime_dir = "{self.runtime}"\n'
            f"max_workers = 2\n[shutdown]\ngrace = {grace}\n"
            f'[plugins]\nenable = ["hand", "site", "work"{also}]\ndisable = [{disabled}{extra}]\n'
        )

    def start(self) -> "asyncio.Task[int]":
        Resident.made.pop(("Work", str(self.state)), None)
        self.agent = Agent(load(self.file, {}))
        self.job = asyncio.create_task(self.agent.run())
        return self.job

    async def ready(self) -> Work:
        self.start()
        await until(lambda: ("Work", str(self.state)) in Resident.made or self.over)
        if self.over and self.job:
            self.job.result()
        await within(self.work.serving.wait())
        await within(self.work.asked.wait())
        return self.work

    @property
    def over(self) -> bool:
        return self.job is not None and self.job.done()

    @property
    def work(self) -> Work:
        found = Resident.made["Work", str(self.state)]
        assert isinstance(found, Work)
        return found

    @property
    def hand(self) -> Hand:
        found = Resident.made["Hand", str(self.state)]
        assert isinstance(found, Hand)
        return found

    async def running(self, *given: Task) -> list[HandRun]:
        self.work.bring(*given)
        runs = [await self.hand.next_run() for _ in given]
        for each in given:
            await self.until_status(each, Status.RUNNING)
        return runs

    async def until_status(self, given: Task, status: Status) -> Task:
        assert self.work.agent
        agent = self.work.agent

        async def reached() -> bool:
            found = await agent.get(given.key)
            return found is not None and found.status is status

        await until(reached)
        found = await agent.get(given.key)
        assert found
        return found

    async def stop(self) -> int:
        assert self.agent
        self.agent.stop()
        return await self.ended()

    async def ended(self) -> int:
        assert self.job
        return int(await within(self.job))

    async def kill(self) -> None:
        assert self.job
        self.job.cancel()
        await asyncio.wait({self.job})

    async def stored(self) -> dict[str, str]:
        """As the next agent of this directory finds it."""
        self.write()
        await self.ready()
        assert self.work.agent
        found = {each.id: each.status.value for each in await self.work.agent.tasks()}
        await self.kill()
        return found


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    # A runtime directory's name must be short, and pytest's temporary ones are not.
    with tempfile.TemporaryDirectory(prefix="rg-") as runtime:
        made = House(tmp_path, Path(runtime))
        yield made
        if made.job and not made.job.done():
            await made.kill()


async def test_work_comes_in_runs_and_is_told(house: House) -> None:
    work = await house.ready()
    assert work.agent
    assert work.agent.max_workers == 2
    assert (work.agent.agent_id, work.agent.machine_id) == (
        work.context.agent_id,
        work.context.machine_id,
    )
    [run] = await house.running(task())
    run.end(0)
    await until(lambda: ("complete", "t1") in work.told)
    assert work.told == [("start", "t1"), ("complete", "t1")]
    assert await house.stop() == 0
    assert work.agent.stopping.is_set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_in_order(house: House, number: int) -> None:
    await house.ready()
    os.kill(os.getpid(), number)
    assert await house.ended() == 0
    assert signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}


async def test_who_stops_leaves_runs_alone_and_gives_back_the_rest(house: House) -> None:
    work = await house.ready()
    runs = await house.running(task("t1"), task("t2"))
    work.bring(task("t3"), task("t4"))
    assert work.agent
    await until(lambda: len(work.agent.held("work")) == 4)  # type: ignore[union-attr]
    assert await house.stop() == 0
    assert [run.signals for run in runs] == [[], []]
    assert sorted(work.told[-2:]) == [("release", "t3"), ("release", "t4")]
    assert await house.stored() == {
        "t1": "running",
        "t2": "running",
        "t3": "cancelled",
        "t4": "cancelled",
    }


async def test_the_next_agent_finds_the_runs_and_tells_their_ends(house: House) -> None:
    await house.ready()
    [run] = await house.running(task())
    await house.stop()
    run.end(3)
    await house.ready()
    await until(lambda: ("complete", "t1") in house.work.told)
    assert (await house.until_status(task(), Status.FAILED)).run_no == 1


async def test_a_killed_agent_s_runs_are_found_too(house: House) -> None:
    await house.ready()
    [run] = await house.running(task())
    await house.kill()
    await house.ready()
    run.end(0)
    await house.until_status(task(), Status.COMPLETED)
    assert await house.stop() == 0


async def test_runs_that_end_with_the_agent_end_before_it_and_are_told(house: House) -> None:
    (house.state / "children").touch()
    work = await house.ready()
    [run] = await house.running(task())
    assert await house.stop() == 0
    assert len(run.signals) == 1
    assert work.told[-1] == ("complete", "t1")


async def test_a_claim_in_flight_is_awaited_and_given_back(house: House) -> None:
    work = await house.ready()
    work.gate = asyncio.Event()
    work.asked.clear()
    await within(work.asked.wait())
    work.bring(task())
    assert house.agent
    house.agent.stop()
    await within(work.agent.stopping.wait())  # type: ignore[union-attr]
    work.gate.set()
    assert await house.ended() == 0
    assert work.told == [("release", "t1")]


async def test_while_a_claim_hangs_runs_are_handed_over_already(house: House) -> None:
    (house.state / "children").touch()
    house.write(grace=0.5)
    work = await house.ready()
    [run] = await house.running(task())
    work.gate = asyncio.Event()
    work.asked.clear()
    await within(work.asked.wait())
    assert await house.stop() == 0
    assert len(run.signals) == 1
    work.gate.set()


async def test_what_cannot_be_told_within_the_grace_is_kept_for_the_next_start(
    house: House,
) -> None:
    house.write(grace=0.3)
    work = await house.ready()
    work.away = True
    [run] = await house.running(task())
    run.end(0)
    await house.until_status(task(), Status.COMPLETED)
    assert await house.stop() == 0
    assert "leaving before everything was told" in house.said.getvalue()
    await house.ready()
    await until(lambda: len(house.work.told) == 2)
    assert house.work.told == [("start", "t1"), ("complete", "t1")]


async def test_a_second_stop_waits_for_nothing(house: House) -> None:
    house.write(grace=3600.0)
    work = await house.ready()
    work.away = True
    [run] = await house.running(task())
    assert house.agent
    house.agent.stop()
    await until(lambda: "stopping; once more to leave at once" in house.said.getvalue())
    assert not house.over
    house.agent.stop()
    assert await house.ended() == 0
    assert run.signals == []
    assert await house.stored() == {"t1": "running"}


async def test_a_stop_before_it_was_ready_is_not_lost(house: House) -> None:
    house.start()
    assert house.agent
    house.agent.stop()
    assert await house.ended() == 0


@pytest.mark.parametrize("ending", ["error", "return", "cancelled"])
async def test_a_part_that_ends_by_itself_ends_the_agent_loudly(house: House, ending: str) -> None:
    work = await house.ready()
    if ending == "error":
        work.end.set_exception(ValueError("a bug in serve"))
    elif ending == "return":
        work.end.set_result(None)
    else:
        work.end.cancel()
    assert await house.ended() == 1
    said = house.said.getvalue()
    assert "a part of the agent ended, so it stops" in said
    assert 'part="serve work"' in said
    assert ("a bug in serve" in said) == (ending == "error")


async def test_a_part_that_fails_while_it_leaves_is_said(house: House) -> None:
    house.write(grace=0.3)
    work = await house.ready()
    work.away = True
    await house.running(task())
    assert house.agent
    house.agent.stop()
    await until(lambda: "stopping; once more" in house.said.getvalue())
    work.end.set_exception(ValueError("a late bug"))
    assert await house.ended() == 0
    assert "a late bug" in house.said.getvalue()


async def test_an_error_that_nobody_foresaw_ends_the_agent_and_keeps_what_is_stored(
    house: House,
) -> None:
    work = await house.ready()
    wrong: Any = "odd"
    work.bring(task())
    run = await house.hand.next_run()
    await house.until_status(task(), Status.RUNNING)
    run.end(outcome=Outcome(reason=wrong, exit_code=0))
    assert await house.ended() == 1
    assert "part=worker" in house.said.getvalue()
    assert await house.stored() == {"t1": "running"}


async def test_two_agents_fit_in_one_process(tmp_path: Path, house: House) -> None:
    other = House(tmp_path / "other", house.runtime)
    await house.ready()
    await other.ready()
    [run] = await other.running(task())
    run.end(0)
    await other.until_status(task(), Status.COMPLETED)
    assert house.work.told == []
    assert house.work.agent
    assert await house.work.agent.get(task().key) is None
    assert await house.stop() == 0
    assert not other.over
    assert await other.stop() == 0


async def test_a_second_agent_of_the_same_directory_is_refused_and_harms_nothing(
    house: House,
) -> None:
    await house.ready()
    with pytest.raises(StateDirectoryError):
        await Agent(load(house.file, {})).run()
    [run] = await house.running(task())
    run.end(0)
    await house.until_status(task(), Status.COMPLETED)


async def test_a_start_that_fails_lets_go_of_the_directory(house: House) -> None:
    house.write(also=', "broken_store"', extra=', "sqlite_store"')
    house.start()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        await house.ended()
    house.write(extra=', "priority_scheduler"')
    house.start()
    with pytest.raises(PluginError, match="exactly one plugin must give the schedule hook"):
        await house.ended()
    house.write()
    await house.ready()


async def test_memory_is_hidden_from_tasks_of_the_same_user(house: House) -> None:
    await house.ready()
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0  # PR_GET_DUMPABLE


async def test_what_is_submitted_here_waits_for_others_also_across_a_stop(house: House) -> None:
    work = await house.ready()
    assert work.agent
    first = await work.agent.submit(Task(id="first", command="true"))
    last = await work.agent.submit(Task(id="last", command="true", depends_on=("first",)))
    assert (await house.hand.next_run()).launch.key == first.key
    await house.until_status(first, Status.RUNNING)
    assert await house.stop() == 0
    await house.ready()
    assert (await house.until_status(last, Status.PENDING)).run_no == 0
    [run] = house.hand.runs.values()
    run.end(0)
    assert (await house.hand.next_run()).launch.key == last.key
    assert house.work.told == [], "nobody else has asked for them"
