"""What waits, what runs, and who is given the next slot; and that nothing is ever forgotten."""

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_core.api.resources import Free
from agent_core.api.wire import Code
from agent_core.clock import Instant
from agent_core.errors import StoreError, StoreFull
from agent_core.lifecycle import Move, Status
from agent_core.models import Key, Lease, Plan, Reason, Running, Task, Verdict
from agent_core.testing.clock import TurnedClock
from agent_core.waiting import REFILL, WINDOW, Aside
from tests.agent_core.core import Core, GivenScheduler, task, turns, until, within

T1, T2, T3 = task("t1"), task("t2"), task("t3")


def lease(core: Core, seconds: float) -> Lease:
    return Lease(until=Instant.now(core.clock).plus(seconds))


async def running(core: Core, *given: Task) -> list[Any]:
    """These run, each in its slot."""
    await core.bring(*given)
    runs = [await core.executor.next_run() for _ in given]
    for each in given:
        await core.until_status(each, "running")
    return runs


async def settle(core: Core) -> None:
    """Everything that the core could do by now it has done: it waits, and the store is idle."""
    for _ in range(5):
        await turns()
        await core.store.next_due(0.0)
    await turns()


# --- slots


async def test_no_more_run_at_once_than_there_are_slots_and_the_most_urgent_is_next(
    core: Core,
) -> None:
    await core.start()
    first, _ = await running(core, T1, T2)
    await core.bring(task("late"), task("urgent", priority=3))
    await settle(core)
    assert len(core.executor.runs) == 2
    first.end()
    run = await core.executor.next_run()
    assert run.launch.key.task_id == "urgent"
    await settle(core)
    assert len(core.executor.runs) == 3
    run.end()
    assert (await core.executor.next_run()).launch.key.task_id == "late"


async def test_a_free_slot_is_offered_to_the_sources(core: Core) -> None:
    await core.start()
    assert core.worker.demands.slots == 4
    runs = await running(core, T1, T2)
    assert core.worker.demands.slots == 2
    await core.bring(T3)
    assert core.worker.demands.slots == 1
    await core.bring(task("t4"), task("t5"))
    assert core.worker.demands.slots == 0
    changed = core.worker.demands.changed.next()
    runs[0].end()
    await core.executor.next_run()
    runs[1].end()
    await core.executor.next_run()
    await within(changed)
    assert core.worker.demands.slots == 1


async def test_a_task_that_ends_where_it_waits_makes_room(unarmed: Core) -> None:
    await unarmed.start()
    await running(unarmed, T1, T2)
    await unarmed.bring(T3, task("t4"))
    await settle(unarmed)
    changed = unarmed.worker.demands.changed.next()
    assert unarmed.worker.demands.slots == 0
    assert await unarmed.worker.cancel(T3.key, code=1, reason="no")
    assert changed.done()
    assert unarmed.worker.demands.slots == 1


async def test_what_waits_in_memory_is_bounded_and_the_rest_comes_when_there_is_room(
    tmp_path: Path,
) -> None:
    core = await Core.open(tmp_path, max_workers=0)
    tasks = [task(f"t{n:04}", source="", created_at=float(n)) for n in range(WINDOW + 200)]
    await core.add(*tasks)
    await core.start()
    assert len(core.scheduler) == WINDOW
    assert core.worker.demands.slots == 0
    await core.worker.admit(await core.add(task("claimed")))
    assert len(core.scheduler) == WINDOW, "one more than the window waits in the store"
    for each in tasks[: 2 * REFILL]:
        assert await core.worker.cancel(each.key, code=1, reason="no")
    await core.worker.admit([])
    await until(lambda: len(core.scheduler) > WINDOW - REFILL)
    assert len(core.scheduler) <= WINDOW
    await core.close()


# --- admission


async def test_what_a_site_does_not_allow_is_refused_when_it_comes(core: Core) -> None:
    core.judge.verdicts["t1"] = Verdict.deny("no such program here")
    await core.start()
    await core.bring(T1, T2)
    refused = await core.get(T1)
    assert refused.status is Status.FAILED
    assert refused.outcome
    assert (refused.outcome.error_code, refused.outcome.error) == (
        Code.POLICY,
        "no such program here",
    )
    assert (await core.executor.next_run()).launch.key == T2.key
    assert [held.key for held in core.worker.held("server")] == [T2.key]


async def test_a_refusal_that_cannot_be_saved_is_made_again_and_nothing_runs(core: Core) -> None:
    core.judge.verdicts["t1"] = Verdict.deny("no")
    core.store.fail("save_all", StoreFull("no room"))
    await core.start()
    await core.bring(T1)
    await core.until_status(T1, "failed")
    assert not core.executor.runs
    assert await core.events() == [("complete", "t1")]


async def test_a_task_cancelled_while_it_is_judged_never_waits(core: Core) -> None:
    core.judge.verdicts["t1"] = gate = asyncio.Event()
    core.judge.verdicts["t1 then"] = Verdict.deny("too late")
    job = asyncio.create_task(core.bring(T1))
    await within(core.judge.asked.wait())
    assert [held.key for held in core.worker.held("server")] == [T1.key]
    assert await core.worker.cancel(T1.key, code=7, reason="by Ada")
    gate.set()
    await within(job)
    assert len(core.scheduler) == 0
    cancelled = await core.get(T1)
    assert cancelled.outcome
    assert cancelled.outcome.error == "by Ada"
    assert core.worker.held("server") == []
    assert "cannot be saved" not in core.said.getvalue()


async def test_while_one_is_judged_all_that_came_with_it_are_held(core: Core) -> None:
    """Their leases must be kept alive, however long a validator takes."""
    core.judge.verdicts["t1"] = gate = asyncio.Event()
    job = asyncio.create_task(core.bring(T1, T2))
    await within(core.judge.asked.wait())
    assert {held.key for held in core.worker.held("server")} == {T1.key, T2.key}
    gate.set()
    await within(job)


async def test_a_task_that_may_not_begin_yet_waits_for_its_time(tmp_path: Path) -> None:
    core = await Core.open(tmp_path, TurnedClock())
    await core.start()
    await core.bring(task(due_at=core.clock.wall() + 10))
    await settle(core)
    assert not core.executor.runs
    await core.clock.advance(11)  # type: ignore[attr-defined]
    await core.worker.admit([])
    await core.executor.next_run()
    await core.close()


# --- leases


async def test_what_is_held_tells_each_attempt_as_it_stands_now(core: Core) -> None:
    await core.start()
    await running(core, T1, T2)
    await core.bring(T3, task("local", source=""), task("other", source="elsewhere"))
    held = {each.key.task_id: each for each in core.worker.held("server")}
    assert {name: (each.status, each.begun) for name, each in held.items()} == {
        "t1": (Status.RUNNING, True),
        "t2": (Status.RUNNING, True),
        "t3": (Status.PENDING, False),
    }
    assert [each.key.task_id for each in core.worker.held("elsewhere")] == ["other"]


async def test_no_run_begins_under_a_lease_that_is_over_and_a_renewal_lets_it(
    tmp_path: Path,
) -> None:
    core = await Core.open(tmp_path, TurnedClock(), max_workers=1)
    await core.start()
    over, good = task("over", priority=1, lease=lease(core, -1)), task("good", lease=lease(core, 9))
    await core.bring(over, good)
    run = await core.executor.next_run()
    assert run.launch.key == good.key, "the slot is not lost to the one that may not begin"
    assert core.worker.demands.slots == 1, "what waits for its lease counts as waiting"
    core.worker.renewed(over.key, lease(core, -1))
    run.end()
    await core.until_status(good, "completed")
    await settle(core)
    assert len(core.executor.runs) == 1, "a renewal that is over too lets nothing begin"
    core.worker.renewed(over.key, lease(core, 60))
    run = await core.executor.next_run()
    [held] = core.worker.held("server")
    assert held.lease == lease(core, 60)
    run.end()
    await core.until_idle()
    assert core.bench.leases.of(over) == over.lease, "a renewal is forgotten with its task"
    await core.close()


async def test_a_renewal_of_something_unknown_is_no_error_and_kept_nowhere(core: Core) -> None:
    core.worker.renewed(T1.key, lease(core, 60))
    assert core.bench.leases.of(T1) is None


async def test_a_task_that_waits_for_its_lease_can_be_cancelled(core: Core) -> None:
    await core.start()
    late = task(lease=lease(core, -1))
    await core.bring(late)
    await until(lambda: late in core.worker.waiting.parked(Aside.LEASE))
    assert await core.worker.cancel(late.key, code=1, reason="no")
    assert core.worker.demands.slots == 4
    core.worker.renewed(late.key, lease(core, 60))
    await settle(core)
    assert not core.executor.runs


# --- a task granted anew to the agent that still holds it


async def anew(core: Core, deaf: bool = True) -> tuple[Task, Any]:
    """Attempt a1 of T1 runs and takes its time to end; the same task comes as attempt a2."""
    [run] = await running(core, T1)
    if deaf:
        run.deaf, run.grace = True, 3600.0
    newer = task("t1", attempt_id="a2")
    await core.bring(newer)
    return newer, run


async def test_a_newer_attempt_begins_only_when_the_run_of_the_older_is_gone(core: Core) -> None:
    await core.start()
    newer, run = await anew(core)
    await run.signalled()
    await settle(core)
    assert len(core.executor.runs) == 1, "a free slot is not enough"
    assert {held.key for held in core.worker.held("server")} == {T1.key, newer.key}
    assert core.worker.demands.slots == 2, "it counts as waiting"
    core.worker.renewed(newer.key, lease(core, 60))
    await core.bring(T2)
    assert (await core.executor.next_run()).launch.key == T2.key, "nobody else waits for it"

    run.end(1)

    assert (await core.executor.next_run()).launch.key == newer.key
    older = await core.get(T1)
    assert older.status is Status.CANCELLED
    assert older.outcome
    assert (older.outcome.error_code, older.outcome.error) == (
        Code.ATTEMPT_LOST,
        "attempt lost: this agent was granted the task anew",
    )


async def test_an_older_attempt_that_waits_never_begins(core: Core) -> None:
    await core.start()
    retried = task("t1", max_retries=3, retry_delay=3600.0)
    [run] = await running(core, retried)
    run.end(1)
    await core.until_status(retried, "pending")
    await core.until_idle()
    newer = task("t1", attempt_id="a2")
    await core.bring(newer)
    run = await core.executor.next_run()
    assert run.launch.key == newer.key
    assert (await core.get(retried)).status is Status.CANCELLED
    run.end()
    await core.until_status(newer, "completed")
    await core.until_idle()
    assert core.worker.held("server") == []


async def test_another_source_may_have_a_task_of_the_same_id(core: Core) -> None:
    await core.start()
    [run] = await running(core, T1)
    other = task("t1", attempt_id="a2", source="elsewhere")
    await core.bring(other)
    assert (await core.executor.next_run()).launch.key == other.key
    await settle(core)
    assert run.signals == []


async def test_a_newer_attempt_can_be_cancelled_while_the_older_ends(core: Core) -> None:
    await core.start()
    newer, run = await anew(core)
    await until(lambda: newer in core.worker.waiting.parked(Aside.OLDER))
    assert await core.worker.cancel(newer.key, code=7, reason="by Ada")
    run.end()
    await core.until_idle()
    await settle(core)
    assert len(core.executor.runs) == 1
    assert core.worker.held("server") == []


async def test_after_a_kill_a_newer_attempt_waits_for_the_run_that_is_found_again(
    core: Core,
) -> None:
    """The agent was killed between keeping the newer attempt and ending the older."""
    await core.start()
    await running(core, T1)
    newer = task("t1", attempt_id="a0")  # whichever the store lists first
    await core.add(newer)
    core = await (await core.again()).start()
    await until(lambda: newer in core.worker.waiting.parked(Aside.OLDER))
    assert len(core.executor.runs) == 1
    assert await core.worker.cancel(T1.key, code=Code.ATTEMPT_LOST, reason="lost")
    await core.until_status(T1, "cancelled")
    await core.until_status(newer, "running")
    await core.kill()


async def test_a_full_disk_never_lets_two_attempts_run_at_once(unarmed: Core) -> None:
    await unarmed.start()
    runs = await running(unarmed, T2, T3)
    await unarmed.bring(T1)  # waits for a slot
    unarmed.store.fail("save_all", StoreFull("no room"))
    newer = task("t1", attempt_id="a2")
    await unarmed.bring(newer)
    assert "an end cannot be saved now" in unarmed.said.getvalue()
    for run in runs:
        run.end()
    first = await unarmed.executor.next_run()
    await settle(unarmed)
    assert len(unarmed.executor.runs) == 3
    first.end()
    assert {first.launch.key, (await unarmed.executor.next_run()).launch.key} == {T1.key, newer.key}


# --- cancel


async def test_a_running_task_is_cancelled_through_its_run(core: Core) -> None:
    await core.start()
    [run] = await running(core, T1)
    assert await core.worker.cancel(T1.key, code=7, reason="by Ada")
    await core.until_status(T1, "cancelled")
    assert len(run.signals) == 1
    assert not await core.worker.cancel(T1.key, code=7, reason="again")


async def test_what_is_unknown_cannot_be_cancelled(core: Core) -> None:
    assert not await core.worker.cancel(Key("nobody", ""), code=1, reason="no")


async def test_a_waiting_task_is_cancelled_and_never_runs(core: Core) -> None:
    await core.start()
    first, second = await running(core, T1, T2)
    await core.bring(T3)
    assert await core.worker.cancel(T3.key, code=7, reason="by Ada")
    cancelled = await core.get(T3)
    assert cancelled.status is Status.CANCELLED
    assert cancelled.outcome
    assert (cancelled.outcome.reason, cancelled.outcome.error_code) == (Reason.CANCELLED, 7)
    first.end()
    second.end()
    await core.until_idle()
    assert len(core.executor.runs) == 2


async def test_a_task_that_waits_for_its_retry_is_cancelled(core: Core) -> None:
    await core.start()
    [run] = await running(core, task(max_retries=3, retry_delay=3600.0))
    run.end(1)
    await core.until_status(T1, "pending")
    await core.until_idle()
    assert await core.worker.cancel(T1.key, code=7, reason="by Ada")
    assert (await core.get(T1)).status is Status.CANCELLED
    assert core.worker.held("server") == []


async def test_a_task_that_only_the_store_knows_is_cancelled(core: Core) -> None:
    await core.start()
    local = task(source="", due_at=4e9)
    await core.add(local)
    assert await core.worker.cancel(local.key, code=7, reason="by Ada")
    assert (await core.get(local)).status is Status.CANCELLED


async def test_a_task_that_begins_while_its_cancel_looks_for_it_is_cancelled_all_the_same(
    core: Core,
) -> None:
    """The word reached the store's answer of a moment before: it must find the run then."""
    await core.start()
    local = task(source="")
    await core.add(local)
    gate = core.store.hold("get")
    cancel = asyncio.create_task(core.worker.cancel(local.key, code=7, reason="by Ada"))
    await within(core.store.entered["get"].wait())
    core.worker.waiting.feed.look_again()
    await core.worker.admit([])
    run = await core.executor.next_run()
    await core.until_status(local, "running")
    gate.set()
    assert await within(cancel)
    await core.until_status(local, "cancelled")
    assert len(run.signals) == 1


async def test_a_task_that_begins_while_its_cancel_is_saved_is_cancelled_all_the_same(
    core: Core,
) -> None:
    await core.start()
    local = task(source="")
    await core.add(local)
    gate = core.store.hold("get")
    cancel = asyncio.create_task(core.worker.cancel(local.key, code=7, reason="by Ada"))
    await within(core.store.entered["get"].wait())
    core.worker.waiting.feed.look_again()
    await core.worker.admit([])
    run = await core.executor.next_run()
    await core.until_status(local, "running")
    gate.set()
    assert await within(cancel)
    await core.until_status(local, "cancelled")
    assert len(run.signals) == 1


async def test_a_task_that_ends_while_its_cancel_looks_for_it_is_final(core: Core) -> None:
    await core.start()
    local = task(source="")
    await core.add(local)
    gate = core.store.hold("get")
    cancel = asyncio.create_task(core.worker.cancel(local.key, code=7, reason="by Ada"))
    await within(core.store.entered["get"].wait())
    await core.bench.moves.make(local, Move.REFUSE)
    gate.set()
    assert not await within(cancel)
    assert (await core.get(local)).status is Status.FAILED


async def test_a_cancel_that_cannot_be_saved_says_so_and_forgets_nobody(core: Core) -> None:
    await core.start()
    first, _ = await running(core, T1, T2)
    await core.bring(T3)
    core.store.fail("save_all", StoreFull("no room"))
    with pytest.raises(StoreFull):
        await core.worker.cancel(T3.key, code=7, reason="by Ada")
    assert (await core.get(T3)).status is Status.PENDING
    first.end()
    assert (await core.executor.next_run()).launch.key == T3.key


async def test_a_cancel_that_fails_while_the_store_is_read_forgets_nobody(unarmed: Core) -> None:
    """The reader's answer left it out, because it was waiting then."""
    await unarmed.start()
    await running(unarmed, T1, T2)
    await unarmed.bring(T3)
    gate = unarmed.store.hold("due")
    unarmed.worker.waiting.feed.look_again()
    await unarmed.worker.admit([])
    await within(unarmed.store.entered["due"].wait())
    unarmed.store.fail("save_all", StoreFull("no room"))
    with pytest.raises(StoreFull):
        await unarmed.worker.cancel(T3.key, code=7, reason="by Ada")
    gate.set()
    await until(lambda: len(unarmed.scheduler) == 1)


# --- retries


async def test_a_failed_run_is_tried_again_when_its_time_has_come(tmp_path: Path) -> None:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock)
    await core.start()
    [run] = await running(core, task(max_retries=1, retry_delay=30.0))
    run.end(1)
    await core.until_idle()
    await clock.advance(29)
    await core.worker.admit([])
    await settle(core)
    assert len(core.executor.runs) == 1
    await clock.advance(2)
    await core.worker.admit([])
    again = await core.executor.next_run()
    assert again.launch.run_no == 2
    again.end(0)
    await core.until_status(T1, "completed")
    assert await core.events() == [
        ("start", "t1"),
        ("run", "t1"),
        ("start", "t1"),
        ("complete", "t1"),
    ]
    await core.close()


async def test_a_retry_comes_by_itself(core: Core) -> None:
    await core.start()
    [run] = await running(core, task(max_retries=1, retry_delay=0.1))
    run.end(1)
    assert (await core.executor.next_run()).launch.run_no == 2


async def test_a_retry_without_a_delay_waits_for_nothing(core: Core) -> None:
    core.executor.exit_code = 1
    await core.start()
    await core.bring(task(max_retries=3, retry_delay=0.0))
    failed = await core.until_status(T1, "failed")
    assert (failed.run_no, failed.retry_count) == (4, 3)


async def test_a_retry_that_is_stored_while_the_due_times_are_read_is_not_forgotten(
    core: Core,
) -> None:
    """The answer of a moment before must not overwrite what was learnt since."""
    await core.start()
    [run] = await running(core, task(max_retries=1, retry_delay=0.3))
    gate = core.store.hold("next_due")
    core.worker.waiting.feed.look_again()
    await core.worker.admit([])
    await within(core.store.entered["next_due"].wait())
    run.end(1)
    await core.until_idle()
    gate.set()
    assert (await core.executor.next_run()).launch.run_no == 2


async def test_the_earliest_of_many_due_times_counts(core: Core) -> None:
    await core.start()
    runs = await running(
        core,
        task("t1", max_retries=1, retry_delay=0.2),
        task("t2", max_retries=1, retry_delay=3600.0),
    )
    for run in runs:
        run.end(1)
    assert (await core.executor.next_run()).launch.key == T1.key


async def test_a_wall_clock_that_jumps_forward_brings_what_is_due_by_it(tmp_path: Path) -> None:
    clock = TurnedClock()
    core = await Core.open(tmp_path, clock)
    await core.start()
    [run] = await running(core, task(max_retries=1, retry_delay=3600.0))
    run.end(1)
    await core.until_idle()
    clock.jump_wall(3601)
    await core.worker.admit([])
    assert (await core.executor.next_run()).launch.run_no == 2
    await core.close()


# --- a store in trouble, and somebody else at work


async def test_a_store_that_cannot_be_read_is_read_again(core: Core) -> None:
    await core.add(task(source=""))
    core.store.fail("due", StoreError("locked"))
    await core.start()  # its recovery reads once, its loop once more
    await core.executor.next_run()
    assert "waiting tasks cannot be read" in core.said.getvalue()


async def test_a_task_that_somebody_else_ended_is_let_go(core: Core) -> None:
    gate = core.store.hold("save_all", before=True)
    await core.start()
    await core.bring(T1)
    await within(core.store.entered["save_all"].wait())
    assert await core.store.save(T1, {"status": Status.FAILED})
    core.store.fail("get", StoreError("locked"))
    gate.set()
    await core.until_idle()
    assert not core.executor.runs
    assert core.worker.held("server") == []
    assert "somebody else was first" in core.said.getvalue()


async def test_a_task_whose_row_is_gone_is_let_go(core: Core) -> None:
    await core.start()
    await core.worker.admit([T1])  # never stored
    await core.until_idle()
    await until(lambda: not core.worker.held("server"))
    assert not core.executor.runs


async def test_a_start_that_somebody_else_stored_is_taken_up_where_it_stands(core: Core) -> None:
    """A store may have kept what it said it had not: then our own second try is the conflict."""
    gate = core.store.hold("save_all")
    await core.start()
    await core.bring(T1)
    await within(core.store.entered["save_all"].wait())
    real_save = core.store._store.save

    async def kept_and_failed() -> None:
        stored = await core.get(T1)
        await real_save(stored, {"start_id": "another"})

    await kept_and_failed()
    gate.set()
    run = await core.executor.next_run()  # the start in hand goes on, and its BEGIN conflicts
    await until(lambda: ("another", False) in core.executor.asked)
    again = await core.executor.next_run()
    assert again.launch.start_id not in {"another", run.launch.start_id}
    again.end(0)
    await core.until_status(T1, "completed")


async def test_an_error_that_nobody_foresaw_ends_the_loop_loudly(core: Core) -> None:
    core.store.fail("save_all", RuntimeError("a bug"))
    await core.start()
    assert core.loop
    await core.bring(T1)
    with pytest.raises(RuntimeError, match="a bug"):
        await within(core.loop)


class Line:
    """A scheduler that plans what a test says."""

    def __init__(self, *plans: Sequence[Task]) -> None:
        self.plans = list(plans)
        self.waiting: dict[Key, Task] = {}

    def add(self, task: Task) -> None:
        self.waiting[task.key] = task

    def remove(self, key: Key) -> None:
        self.waiting.pop(key, None)

    def next(self, running: Collection[Running], free: Free) -> Plan:
        return Plan(start=self.plans.pop(0) if self.plans else [])

    def __len__(self) -> int:
        return len(self.waiting)


@pytest.mark.parametrize(
    "plan",
    [[T1, T1], [task("stranger"), T1], [T1, T2, T3, task("t4")]],
    ids=["one twice", "a stranger", "more than there are slots"],
)
async def test_a_scheduler_that_errs_starts_nothing_twice_and_not_too_many(
    tmp_path: Path, plan: list[Task]
) -> None:
    line = Line(plan)
    core = await Core.open(tmp_path, priority_scheduler=GivenScheduler(line))
    await core.bring(T1, T2, T3, task("t4"))
    await core.start()
    wanted = len({each.key for each in plan if each in (T1, T2)})
    for _ in range(wanted):
        await core.executor.next_run()
    await settle(core)
    assert len(core.executor.runs) == wanted
    await core.close()


async def test_a_scheduler_that_names_only_strangers_for_ever_does_not_hold_the_loop(
    tmp_path: Path,
) -> None:
    line = Line(*[[task("stranger")]] * 100_000)
    core = await Core.open(tmp_path, priority_scheduler=GivenScheduler(line))
    await core.bring(T1)
    await core.start()
    await settle(core)
    assert len(line.plans) > 99_900
    await core.close()


# --- leaving


async def test_who_leaves_starts_nothing_more_and_leaves_what_can_go_on(core: Core) -> None:
    await core.start()
    runs = await running(core, T1, T2)
    await core.bring(T3)
    await within(core.worker.leave())
    assert core.worker.demands.slots == 0
    assert [run.signals for run in runs] == [[], []]
    await core.worker.give_back()
    assert (await core.get(T1)).status is Status.RUNNING
    released = await core.get(T3)
    assert released.status is Status.CANCELLED
    assert released.outcome
    assert released.outcome.reason is Reason.RELEASED
    assert (await core.events())[-1] == ("release", "t3")
    assert len(core.executor.runs) == 2


async def test_what_is_left_to_run_is_not_cancelled_by_who_has_left_it(core: Core) -> None:
    await core.start()
    await running(core, T1)
    await within(core.worker.leave())
    assert not await core.worker.cancel(T1.key, code=7, reason="the attempt is lost")
    assert (await core.get(T1)).status is Status.RUNNING


async def test_what_waits_can_be_cancelled_by_who_leaves(core: Core) -> None:
    await core.start()
    await running(core, T1, T2)
    await core.bring(T3)
    await within(core.worker.leave())
    assert await core.worker.cancel(T3.key, code=7, reason="by Ada")
    await core.worker.give_back()
    cancelled = await core.get(T3)
    assert cancelled.outcome
    assert cancelled.outcome.error == "by Ada"


async def test_runs_that_end_with_the_agent_are_ended_before_it_leaves(core: Core) -> None:
    core.executor.outlives = False
    await core.start()
    [run] = await running(core, T1)
    await within(core.worker.leave())
    assert len(run.signals) == 1
    assert (await core.get(T1)).status is Status.FAILED


async def test_what_has_run_before_or_is_local_is_not_given_back(core: Core) -> None:
    await core.start()
    [run] = await running(core, task(max_retries=1, retry_delay=3600.0))
    run.end(1)
    await core.until_idle()
    await core.worker.leave()
    await core.bring(T2, task("local", source=""))
    await core.worker.give_back()
    assert (await core.get(T1)).status is Status.PENDING
    assert (await core.get(task("local", source=""))).status is Status.PENDING
    assert (await core.get(T2)).status is Status.CANCELLED


async def test_one_that_cannot_be_given_back_holds_up_no_other(core: Core) -> None:
    await core.worker.leave()
    await core.bring(T1, T2, T3)
    await core.bench.moves.make(T1, Move.REFUSE)
    core.store.fail("save_all", None, StoreFull("no room"))
    await core.worker.give_back()
    assert [(await core.get(each)).status for each in (T1, T2, T3)] == [
        Status.FAILED,
        Status.PENDING,
        Status.CANCELLED,
    ]


async def test_a_retry_is_not_begun_by_who_leaves(core: Core) -> None:
    core.executor.outlives = False
    await core.start()
    await running(core, task(max_retries=1, retry_delay=0.0))
    await within(core.worker.leave())
    await settle(core)
    assert (await core.get(T1)).status is Status.PENDING
    assert len(core.executor.runs) == 1


async def test_leaving_with_nothing_to_do_is_quick_and_may_be_asked_twice(core: Core) -> None:
    await core.start()
    await within(core.worker.leave())
    await within(core.worker.leave())
    await core.worker.give_back()
    await within(core.worker.abandon())


async def test_who_is_hurried_writes_nothing_more(core: Core) -> None:
    core.executor.outlives = False
    await core.start()
    [run] = await running(core, T1)
    run.deaf, run.grace = True, 3600.0
    leaving = asyncio.create_task(core.worker.leave())
    await run.signalled()
    await within(core.worker.abandon())
    await within(leaving)
    assert (await core.get(T1)).status is Status.RUNNING
    assert core.worker.slots.idle


async def test_a_renewal_of_a_run_that_must_not_overlap_outlives_the_agent(core: Core) -> None:
    await core.start()
    now = Instant.now(core.clock)
    given = task(lease=Lease(until=now.plus(60), stop_after=600.0))
    await running(core, given)
    core.worker.renewed(given.key, Lease(until=now.plus(300)))

    async def kept() -> bool:
        return (await core.get(given)).lease == Lease(until=now.plus(300), stop_after=600.0)

    await until(kept)


async def test_a_line_about_a_run_names_its_task_attempt_and_run(core: Core) -> None:
    await core.start()
    [run] = await running(core, task(max_retries=1, retry_delay=0.0))
    run.end(1)
    again = await core.executor.next_run()
    again.end(0)
    await core.until_status(task(), "completed")
    await core.until_idle()
    assert "completed  task=t1 attempt=a1 run=2" in core.said.getvalue()
