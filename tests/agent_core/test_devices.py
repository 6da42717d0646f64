"""Tasks that ask for devices: theirs alone, from the start to the end, across a restart."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent_core.api.resources import Resources
from agent_core.api.wire import Code
from agent_core.hookspecs import hookimpl
from agent_core.inventory import Gpu, Inventory
from agent_core.lifecycle import Status
from agent_core.models import (
    Reason,
    Task,
)
from agent_core.testing.executors import HandExecutor
from tests.agent_core.core import Core, task, turns, until

ONE = Resources(gpus=1)


class Gpus:
    """A machine with so many GPUs."""

    def __init__(self, count: int) -> None:
        self.count = count

    @hookimpl
    async def inventory(self) -> Inventory:
        gpus = [Gpu(index=n, uuid=f"GPU-{n}", name="NVIDIA H100") for n in range(self.count)]
        return Inventory(cpu_cores=4, memory_total=2**34, gpus=tuple(gpus))


async def opened(directory: Path, gpus: Gpus, **more: Any) -> Core:
    core = await Core.open(directory, max_workers=4, gpus=gpus, **more)
    return await core.start()


def wants(name: str, **fields: Any) -> Task:
    return task(name, resources=fields.pop("resources", ONE), **fields)


def devices_of(run: Any) -> str:
    return str(run.launch.env["CUDA_VISIBLE_DEVICES"])


async def settle(core: Core) -> None:
    for _ in range(5):
        await turns()
        await core.store.next_due(0.0)
    await turns()


async def test_each_has_its_devices_alone_and_they_are_free_again_when_it_has_ended(
    tmp_path: Path,
) -> None:
    core = await opened(tmp_path, Gpus(2))
    await core.bring(wants("t1"), wants("t2"), wants("t3"), task("t4"))
    runs = {run.launch.key.task_id: run for run in [await core.executor.next_run() for _ in "123"]}
    assert sorted(runs) == ["t1", "t2", "t4"]
    assert {devices_of(runs["t1"]), devices_of(runs["t2"])} == {"GPU-0", "GPU-1"}
    assert runs["t1"].launch.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_VISIBLE_DEVICES" not in runs["t4"].launch.env
    await core.until_status(wants("t1"), "running")
    stored = await core.get(wants("t1"))
    assert stored.devices == (devices_of(runs["t1"]),) == runs["t1"].launch.devices
    await settle(core)
    assert len(core.executor.runs) == 3
    runs["t2"].end()
    third = await core.executor.next_run()
    assert (third.launch.key.task_id, devices_of(third)) == ("t3", devices_of(runs["t2"]))
    await core.close()


async def test_what_a_task_says_of_its_devices_itself_does_not_count(tmp_path: Path) -> None:
    core = await opened(tmp_path, Gpus(2))
    await core.bring(wants("t1", env={"CUDA_VISIBLE_DEVICES": "0,1"}))
    assert devices_of(await core.executor.next_run()) == "GPU-0"
    await core.close()


async def test_after_a_kill_devices_belong_to_what_really_runs(tmp_path: Path) -> None:
    gpus = Gpus(2)
    core = await opened(tmp_path, gpus)
    await core.bring(wants("t1"), wants("t2"), wants("t3"))
    runs = [await core.executor.next_run() for _ in range(2)]
    for run in runs:
        await core.until_status(wants(run.launch.key.task_id), "running")
    runs[0].end()  # nobody hears of it
    core = await core.again(gpus=gpus)
    await core.start()
    third = await core.executor.next_run()
    assert (third.launch.key.task_id, devices_of(third)) == ("t3", devices_of(runs[0]))
    found = core.bench.machine.running
    assert {each.task.id for each in found} == {"t2", "t3"}
    await core.close()


async def test_a_start_that_is_found_to_have_begun_nothing_gives_its_devices_back(
    tmp_path: Path,
) -> None:
    gpus = Gpus(2)
    core = await opened(tmp_path, gpus)
    stored = wants("t1", status=Status.ASSIGNED, start_id="s1", executor="hand")
    await core.kill()
    await core.store._store.set_fact("life", "over")
    core = await core.again(gpus=gpus)
    await core.add(replace(stored, devices=("GPU-1",)))
    await core.add(wants("t2"), wants("t3"))
    await core.start()
    runs = [await core.executor.next_run() for _ in range(2)]
    assert {devices_of(run) for run in runs} == {"GPU-0", "GPU-1"}
    await settle(core)
    assert len(core.executor.runs) == 2
    await core.close()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"resources": Resources(gpus=2, gpu="a100")},
            'asks for 2 GPUs "a100"; this machine has 1',
        ),
        ({"resources": Resources(cpus=64.0)}, "asks for 64 cpus; this machine has 4"),
        ({"labels": {"pool": "b"}}, "the label pool=b; this one has pool=a"),
        ({"wanted_executor": "slurm"}, "asks for the executor slurm; those enabled"),
    ],
)
async def test_what_this_machine_lacks_fails_at_once_in_words(
    tmp_path: Path, asked: dict[str, Any], words: str
) -> None:
    core = await opened(tmp_path, Gpus(1), labels={"pool": "a"})
    await core.bring(wants("t1", **{"resources": Resources(), **asked}))
    failed = await core.until_status(wants("t1"), "failed", "running")
    assert failed.outcome
    assert failed.outcome.reason is Reason.NEVER_RAN
    assert failed.outcome.error_code == Code.NEVER_RAN
    assert words in failed.outcome.error
    assert not core.executor.runs
    await core.close()


async def test_the_executor_that_is_asked_for_is_the_one(tmp_path: Path) -> None:
    first = HandExecutor()  # of the two that are enabled
    core = await opened(tmp_path, Gpus(0), first=first)
    await core.bring(task("t1", wanted_executor="hand"), task("t2"))
    assert (await core.executor.next_run()).launch.key.task_id == "t1"
    assert (await first.next_run()).launch.key.task_id == "t2"
    assert (await core.until_status(task("t1"), "running")).executor == "hand"
    core.executor.takes = False
    await core.bring(task("t3", wanted_executor="hand"))
    failed = await core.until_status(task("t3"), "failed", "running")
    assert failed.outcome
    assert failed.outcome.error == "the executor hand, which it asks for, does not take it"
    await core.close()


async def test_while_its_device_is_away_a_task_waits_and_others_go_on(tmp_path: Path) -> None:
    gpus = Gpus(1)
    core = await opened(tmp_path, gpus)
    gpus.count = 0
    await core.survey.inventory()
    await core.bring(wants("t1", source=""), task("t2"))
    assert (await core.executor.next_run()).launch.key.task_id == "t2"
    await settle(core)
    assert (await core.get(wants("t1", source=""))).status is Status.PENDING
    assert core.worker.demands.slots == 5, "it takes no other's place"
    gpus.count = 1
    await core.survey.inventory()
    assert devices_of(await core.executor.next_run()) == "GPU-0"
    await core.close()


async def test_what_a_source_gave_for_a_device_that_is_gone_goes_back_to_it(
    tmp_path: Path,
) -> None:
    gpus = Gpus(1)
    core = await opened(tmp_path, gpus)
    run = await _running(core, wants("holds it"))
    await core.bring(wants("waits"), wants("has run before", run_no=1))
    gpus.count = 0
    await core.survey.inventory()
    released = await core.until_status(wants("waits"), "cancelled")
    assert released.outcome
    assert released.outcome.reason is Reason.RELEASED
    assert "this machine lacks by now what it asks for" in released.outcome.error
    assert (await core.events())[-1] == ("release", "waits")
    assert (await core.get(wants("has run before"))).status is Status.PENDING
    assert run.signals == [], "who has it keeps it"
    await core.close()


async def _running(core: Core, given: Task) -> Any:
    await core.bring(given)
    run = await core.executor.next_run()
    await core.until_status(given, "running")
    return run


async def test_room_is_made_by_whoever_has_the_devices(tmp_path: Path) -> None:
    core = await opened(tmp_path, Gpus(2))
    plain = await _running(core, task("plain", priority=10))
    two = await _running(core, wants("two", priority=9, resources=Resources(gpus=2)))
    rest = [await _running(core, task(name, priority=10)) for name in ("more", "and more")]
    await core.bring(wants("urgent", priority=1))
    urgent = await core.executor.next_run()
    assert (urgent.launch.key.task_id, devices_of(urgent)) == ("urgent", "GPU-0")
    assert [len(run.signals) for run in (plain, two, *rest)] == [0, 1, 0, 0]
    urgent.end()
    assert devices_of(await core.executor.next_run()) == "GPU-0,GPU-1"
    await core.close()


async def test_processors_and_memory_are_counted_by_what_was_asked_for(tmp_path: Path) -> None:
    core = await opened(tmp_path, Gpus(0))
    half = Resources(cpus=2.0, memory=2**33)
    await core.bring(*(wants(f"t{n}", resources=half) for n in range(3)))
    first, _ = [await core.executor.next_run() for _ in range(2)]
    await settle(core)
    assert len(core.executor.runs) == 2
    first.end()
    assert (await core.executor.next_run()).launch.key.task_id == "t2"
    await core.close()


async def test_the_devices_of_a_task_are_no_secret_of_the_agent(tmp_path: Path) -> None:
    """The agent's own variable is not handed on: what a task sees is what it was given."""
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    core = await opened(tmp_path, Gpus(1))
    run = await _running(core, wants("t1", max_retries=1, retry_delay=0.0))
    run.end(1)
    again = await core.executor.next_run()
    assert devices_of(again) == "GPU-0"
    await until(lambda: core.bench.machine.free.devices == ())
    await core.close()
