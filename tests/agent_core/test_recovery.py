"""After a kill: every stored task to its true state, none of them run twice."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent_core import launch as launching
from agent_core import recovery
from agent_core.errors import StoreError
from agent_core.lifecycle import Status
from agent_core.models import Reason, Task, Verdict
from agent_core.testing.clock import TurnedClock
from tests.agent_core.core import Core, task, until, within

T1, T2, T3 = task("t1"), task("t2"), task("t3")


async def test_every_task_without_an_end_is_found_oldest_first_over_many_pages(core: Core) -> None:
    count = recovery.PAGE * 2 + 3
    held = [task(f"t{n:05}", created_at=float(n)) for n in range(count)]
    final = [task(f"f{n}", created_at=float(n), status=Status.COMPLETED) for n in range(3)]
    await core.add(*reversed(held), *final)
    found = [each.id async for each in recovery.unfinished(core.store)]
    assert found == [each.id for each in held]


async def test_nothing_stored_is_nothing_to_do(core: Core) -> None:
    assert [each async for each in recovery.unfinished(core.store)] == []
    await core.start()
    assert core.worker.held("server") == []


async def test_an_agent_killed_while_tasks_run_and_wait_finds_them_all(tmp_path: Path) -> None:
    core = await Core.open(tmp_path)
    await core.start()
    await core.bring(T1, T2, T3)
    runs = {run.launch.key: run for run in [await core.executor.next_run() for _ in range(2)]}
    for each in (T1, T2):
        await core.until_status(each, "running")
    core = await core.again()
    await core.start()
    held = {each.key.task_id: each.status.value for each in core.worker.held("server")}
    assert held == {"t1": "running", "t2": "running", "t3": "pending"}
    runs[T1.key].end(0)
    third = await core.executor.next_run()
    assert third.launch.key == T3.key
    third.end(0)
    runs[T2.key].end(5)
    for each, status in [(T1, "completed"), (T2, "failed"), (T3, "completed")]:
        assert (await core.until_status(each, status)).run_no == 1
    assert len(core.executor.runs) == 3, "nothing ran twice"
    await core.close()


@pytest.mark.parametrize("began", [True, False])
async def test_an_agent_killed_between_the_stored_start_and_its_answer(
    tmp_path: Path, began: bool
) -> None:
    core = await Core.open(tmp_path)
    core.executor.gate = asyncio.Event()
    core.executor.waiting.clear()
    await core.start()
    await core.bring(T1)
    await within(core.executor.waiting.wait())
    stored = await core.get(T1)
    assert stored.status is Status.ASSIGNED
    core = await core.again()
    core.executor.gate = None
    if began:  # what was sent was carried out, and nobody was there to hear it
        await core.executor._start(_launch_of(core, stored))
        await core.executor.next_run()
    await core.start()
    if began:
        await core.until_status(T1, "running")
        core.executor.runs[stored.start_id].end(0)
    else:
        run = await core.executor.next_run()
        assert run.launch.start_id != stored.start_id
        assert run.launch.run_no == 1
        run.end(0)
    done = await core.until_status(T1, "completed")
    assert (done.run_no, len(core.executor.runs)) == (1, 1)
    assert await core.events() == [("start", "t1"), ("complete", "t1")]
    await core.close()


def _launch_of(core: Core, stored: Task) -> Any:
    return launching.recall(stored, core.bench.runs_dir)


async def test_an_agent_killed_before_an_end_was_stored_stores_it_later(tmp_path: Path) -> None:
    core = await Core.open(tmp_path)
    await core.start()
    await core.bring(T1)
    run = await core.executor.next_run()
    await core.until_status(T1, "running")
    gate = core.store.hold("save_all", before=True)
    run.end(3)
    await within(core.store.entered["save_all"].wait())
    core = await core.again()
    gate.set()
    await core.start()
    failed = await core.until_status(T1, "failed")
    assert failed.outcome
    assert failed.outcome.exit_code == 3
    assert await core.events() == [("start", "t1"), ("complete", "t1")]
    await core.close()


@pytest.mark.parametrize("ends", ["before it is found", "after it was found"])
async def test_why_a_run_is_being_ended_outlives_the_agent_that_began_to_end_it(
    tmp_path: Path, ends: str
) -> None:
    core = await Core.open(tmp_path)
    await core.start()
    await core.bring(T1)
    run = await core.executor.next_run()
    await core.until_status(T1, "running")
    run.deaf, run.grace = True, 1000.0  # it takes its time to end, and then ends by itself
    assert await core.worker.cancel(T1.key, code=7, reason="by Ada Lovelace")
    await run.signalled()
    core = await core.again()
    if ends == "before it is found":
        run.end(0)
    await core.start()
    await core.until_status(T1, "running", "cancelled")
    run.end(0)
    cancelled = await core.until_status(T1, "cancelled")
    assert cancelled.outcome
    assert (cancelled.outcome.reason, cancelled.outcome.exit_code) == (Reason.CANCELLED, 0)
    assert (cancelled.outcome.error_code, cancelled.outcome.error) == (7, "by Ada Lovelace")
    await core.close()


async def test_runs_found_again_keep_their_slots_even_if_there_are_fewer_now(
    tmp_path: Path,
) -> None:
    core = await Core.open(tmp_path, max_workers=3, ahead=0)
    await core.start()
    await core.bring(T1, T2, T3, task("t4"))
    runs = [await core.executor.next_run() for _ in range(3)]
    for run in runs:
        await core.until_status(task(run.launch.key.task_id), "running")
    core.max_workers = 1
    core = await core.again()
    await core.start()
    assert core.worker.demands.slots == 1, "none free, two to have ready, and one waits"
    runs[0].end(0)
    runs[1].end(0)
    await core.until_status(task(runs[0].launch.key.task_id), "completed")
    await core.until_status(task(runs[1].launch.key.task_id), "completed")
    assert len(core.executor.runs) == 3
    runs[2].end(0)
    assert (await core.executor.next_run()).launch.key.task_id == "t4"
    await core.close()


async def test_a_retry_keeps_its_time_and_its_attempt_over_a_restart(tmp_path: Path) -> None:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock)
    await core.start()
    await core.bring(task(max_retries=1, retry_delay=30.0), task("local", source="", due_at=4e9))
    (await core.executor.next_run()).end(1)
    await core.until_status(T1, "pending")
    await core.until_idle()
    core = await core.again()
    await core.start()
    [held] = core.worker.held("server")
    assert (held.key, held.begun) == (T1.key, True)
    await clock.advance(31)
    await core.worker.admit([])
    assert (await core.executor.next_run()).launch.run_no == 2
    await core.close()


async def test_nothing_that_waits_is_judged_by_an_old_verdict(tmp_path: Path) -> None:
    core = await Core.open(tmp_path)
    await core.add(T1)
    core = await core.again()
    core.judge.verdicts["t1"] = Verdict.deny("the rules are others now")
    await core.start()
    await core.until_status(T1, "failed")
    assert not core.executor.runs
    await core.close()


async def test_what_a_killed_agent_did_not_clear_is_cleared_and_no_living_run_s_room(
    tmp_path: Path,
) -> None:
    core = await Core.open(tmp_path)
    await core.start()
    await core.bring(T1)
    run = await core.executor.next_run()
    await core.until_status(T1, "running")
    await core.kill()
    runs = core.bench.runs_dir
    (runs / "gone" / "deep").mkdir(parents=True)
    (runs / "gone.script").write_text("x")
    (runs / "gone.progress").write_text("50")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (runs / "link").symlink_to(tmp_path / "precious")
    Path(run.launch.progress).write_text("7")
    core = await core.again()
    await core.start()
    assert {each.name for each in runs.iterdir()} == {
        run.launch.start_id,
        f"{run.launch.start_id}.progress",
    }
    assert (tmp_path / "precious" / "file").exists()
    run.end(0)
    await core.until_status(T1, "completed")
    await core.close()


async def test_an_executor_that_cannot_tell_now_is_asked_until_it_can(tmp_path: Path) -> None:
    core = await Core.open(tmp_path)
    await core.start()
    await core.bring(T1)
    run = await core.executor.next_run()
    await core.until_status(T1, "running")
    core.executor.answers.extend([ConnectionRefusedError(), TimeoutError(), OSError("x")])
    core = await core.again()
    await core.start()
    await until(lambda: len(core.executor.asked) == 4)
    assert (await core.get(T1)).status is Status.RUNNING
    run.end(0)
    await core.until_status(T1, "completed")
    await core.close()


async def test_a_store_that_cannot_be_read_at_the_start_is_an_error_of_the_start(
    core: Core,
) -> None:
    core.store.fail("tasks", StoreError("locked"))
    with pytest.raises(StoreError):
        await core.worker.recover()


@pytest.mark.parametrize("before", [True, False], ids=["not yet kept", "kept"])
@pytest.mark.parametrize("saves", range(2))
async def test_killed_at_any_write_each_task_has_its_true_end_and_ran_once(
    tmp_path: Path, saves: int, before: bool
) -> None:
    """Their starts are one write, their beginnings and ends the other: the agent is killed at each,

    before it or before its answer.
    """
    core = await Core.open(tmp_path)
    core.executor.exit_code = 0
    gate = core.store.hold("save_all", before=before, skip=saves)
    await core.start()
    await core.bring(T1, T2)
    await within(core.store.entered["save_all"].wait())
    core = await core.again()
    gate.set()
    await core.start()
    for each in (T1, T2):
        assert (await core.until_status(each, "completed", "failed")).status == "completed"
        assert (await core.get(each)).run_no == 1
    await core.until_idle()
    assert len({run.launch.key for run in core.executor.runs.values()}) == 2
    assert len(core.executor.runs) == 2, "nothing ran twice"
    events = await core.events()
    assert sorted(events) == sorted((k, t) for t in ("t1", "t2") for k in ("start", "complete"))
    await core.close()
