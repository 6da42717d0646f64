"""What a plugin that lives beside the work may ask of the agent."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_core.api.wire import Answer, Code
from agent_core.clock import Instant
from agent_core.errors import PluginError, StoreFull, Unreachable
from agent_core.handle import Handle
from agent_core.hookspecs import hookimpl
from agent_core.inventory import Inventory
from agent_core.lifecycle import Status
from agent_core.models import (
    Event,
    Lease,
    Piece,
    Progress,
    Receipt,
)
from tests.agent_core.core import Core, task, turns, until, within

T1, T2 = task("t1"), task("t2")


class Teller:
    """A source that answers as the test says: one answer for all, by kind, or an error."""

    def __init__(self) -> None:
        self.answer: Answer = Answer.TAKEN
        self.error: Exception | None = None
        self.told: list[list[int]] = []

    @hookimpl
    async def report(self, events: Sequence[Event]) -> Sequence[Receipt]:
        self.told.append([event.seq for event in events])
        if self.error:
            raise self.error
        return [
            Receipt(seq=event.seq, answer=self.answer, code=30001, message="granted anew")
            for event in events
        ]

    @hookimpl
    async def inventory(self) -> Inventory:
        return Inventory(hostname="here")


@pytest.fixture
async def core(tmp_path: Path) -> Any:
    made = await Core.open(tmp_path, server=Teller(), elsewhere=Teller())
    await made.start()
    yield made
    await made.close()


def handle_of(core: Core) -> Handle:
    return Handle(
        labels={},
        agent_id="agent-1",
        machine_id="machine-1",
        max_workers=2,
        store=core.store,
        worker=core.worker,
        hooks=core.hooks,
        survey=core.survey,
        local=core.local,
        grew=core.grew,
    )


def teller(core: Core, name: str = "server") -> Teller:
    found = core.plugins[name]
    assert isinstance(found, Teller)
    return found


async def ended(core: Core, *names: str, source: str = "server") -> None:
    core.executor.exit_code = 0
    given = [task(name, source=source) for name in names]
    await core.bring(*given)
    for each in given:
        await core.until_status(each, "completed")


async def test_it_says_whose_it_is(core: Core) -> None:
    handle = handle_of(core)
    assert (handle.agent_id, handle.machine_id, handle.max_workers) == ("agent-1", "machine-1", 2)
    assert handle.stream == core.store.stream
    assert not handle.stopping.is_set()
    assert await handle.inventory() == Inventory(hostname="here")


async def test_tasks_and_facts_are_the_stores(core: Core) -> None:
    handle = handle_of(core)
    await ended(core, "t1", "t2")
    assert (await handle.get(T1.key) or T2).status is Status.COMPLETED
    assert await handle.get(task("nobody").key) is None
    assert [each.id for each in await handle.tasks()] == ["t1", "t2"]
    assert [each.id for each in await handle.tasks([Status.COMPLETED], limit=1)] == ["t1"]
    assert [each.id for each in await handle.tasks(after=T1.key)] == ["t2"]
    await handle.set_fact("cursor", "7")
    assert (await handle.get_fact("cursor"), await handle.get_fact("none")) == ("7", None)


async def test_held_renewed_cancel_and_progress_reach_the_work(core: Core) -> None:
    handle = handle_of(core)
    await core.bring(T1)
    run = await core.executor.next_run()
    await core.until_status(T1, "running")
    lease = Lease(until=Instant.now(core.clock).plus(9))
    handle.renewed(T1.key, lease)
    [held] = handle.held("server")
    assert (held.key, held.lease) == (T1.key, lease)
    Path(run.launch.progress).write_text("5 x\n")
    assert await handle.progress(T1.key) == Progress(percent=5, message="x")
    assert await handle.progress(T2.key) is None
    assert await handle.cancel(T1.key, code=7, reason="by Ada")
    cancelled = await core.until_status(T1, "cancelled")
    assert cancelled.outcome
    assert (cancelled.outcome.error_code, cancelled.outcome.error) == (7, "by Ada")


async def test_the_output_of_a_run_is_that_runs_alone(core: Core) -> None:
    handle = handle_of(core)
    await core.bring(task("t1", max_retries=1, retry_delay=5.0))
    run = await core.executor.next_run()
    assert await handle.output(T1.key, 0, "stdout", 0, 10) is None  # it is not on record yet
    await core.until_status(T1, "running")
    run.printed = b"one, two"
    assert await handle.output(T1.key, 1, "stdout", 5, 2) == Piece(5, b"tw", 8)
    assert await handle.output(T1.key, 1, "stderr", 0, 10) == Piece(0, b"", 0)
    assert await handle.output(T1.key, 2, "stdout", 0, 10) is None
    assert await handle.output(T2.key, 1, "stdout", 0, 10) is None
    [held] = handle.held("server")
    assert held.run_no == 1
    run.end(1)
    await core.until_status(T1, "pending")
    assert await handle.output(T1.key, 1, "stdout", 0, 10) is None


async def test_who_waits_for_the_outbox_hears_of_each_growth_once(core: Core) -> None:
    handle = handle_of(core)
    waiting = asyncio.create_task(handle.outbox_grew())
    await ended(core, "t1")
    await within(waiting)
    await handle.outbox_grew() if core.grew.is_set() else None
    waiting = asyncio.create_task(handle.outbox_grew())
    await asyncio.sleep(0)
    assert not waiting.done()
    await ended(core, "t2")
    await within(waiting)


async def test_the_outbox_leaves_out_what_is_to_be_skipped(core: Core) -> None:
    handle = handle_of(core)
    await ended(core, "t1")
    await ended(core, "t2", source="elsewhere")
    assert len(await handle.outbox(limit=9)) == 4
    assert len(await handle.outbox(limit=3)) == 3
    [first, *_] = left = await handle.outbox(limit=9, skip={T1.key})
    assert {event.key.task_id for event in left} == {"t2"}
    left = await handle.outbox(limit=9, skip_sources={first.source})
    assert {event.key.task_id for event in left} == {"t1"}


# --- report


async def test_each_source_is_told_of_its_own_and_answers_come_in_order(core: Core) -> None:
    handle = handle_of(core)
    await ended(core, "t1")
    await ended(core, "t2", source="elsewhere")
    await ended(core, "t3")
    events = await handle.outbox(limit=9)
    receipts = await handle.report(events)
    assert [receipt.seq for receipt in receipts] == [event.seq for event in events]
    seqs = [event.seq for event in events]
    assert teller(core).told == [[*seqs[:2], *seqs[4:]]]
    assert teller(core, "elsewhere").told == [seqs[2:4]]


async def test_one_source_that_is_away_holds_up_no_other(core: Core) -> None:
    handle = handle_of(core)
    await ended(core, "t1")
    await ended(core, "t2", source="elsewhere")
    teller(core).error = Unreachable("no route", retry_after=7.0)
    receipts = await handle.report(await handle.outbox(limit=9))
    assert [receipt.answer for receipt in receipts] == [Answer.RETRY] * 2 + [Answer.TAKEN] * 2
    assert (receipts[0].message, receipts[0].retry_after) == ("no route", 7.0)
    assert receipts[0].code == Code.INTERNAL
    assert "events wait for their source" in core.said.getvalue()


@pytest.mark.parametrize("error", [Unreachable("no route"), KeyError("a bug")])
async def test_where_nobody_answers_the_error_says_why(core: Core, error: Exception) -> None:
    handle = handle_of(core)
    await ended(core, "t1")
    teller(core).error = error
    with pytest.raises(type(error)):
        await handle.report(await handle.outbox(limit=9))


async def test_a_plugin_that_is_gone_is_named(core: Core) -> None:
    handle = handle_of(core)
    await ended(core, "t1", source="gone")
    with pytest.raises(PluginError, match="the plugin gone is not enabled here or has no report"):
        await handle.report(await handle.outbox(limit=9))


async def test_nothing_to_report_is_no_error(core: Core) -> None:
    assert await handle_of(core).report([]) == []


# --- settle


async def settle(handle: Handle, core: Core, answer: Answer) -> list[Receipt]:
    teller(core).answer = answer
    receipts = await handle.report(await handle.outbox(limit=9))
    await handle.settle(receipts)
    return receipts


async def test_what_was_taken_is_gone_and_what_is_to_be_retried_stays(core: Core) -> None:
    handle = handle_of(core)
    await ended(core, "t1")
    await settle(handle, core, Answer.RETRY)
    assert len(await handle.outbox(limit=9)) == 2
    assert len(handle._outstanding) == 2
    await settle(handle, core, Answer.TAKEN)
    assert await handle.outbox(limit=9) == []
    assert not handle._outstanding, "what is settled is not remembered"


async def test_what_is_refused_is_kept_as_a_dead_letter(core: Core) -> None:
    handle = handle_of(core)
    await ended(core, "t1")
    await settle(handle, core, Answer.REFUSED)
    assert await handle.outbox(limit=9) == []
    assert len(await core.store.dead_letters()) == 2
    assert (await core.get(T1)).status is Status.COMPLETED


async def test_a_run_whose_attempt_is_lost_is_ended(core: Core) -> None:
    handle = handle_of(core)
    await core.bring(T1)
    run = await core.executor.next_run()
    await core.until_status(T1, "running")
    await settle(handle, core, Answer.STALE)
    cancelled = await core.until_status(T1, "cancelled")
    assert len(run.signals) == 1
    assert cancelled.outcome
    assert cancelled.outcome.error_code == 30001
    assert cancelled.outcome.error == "the server took the attempt back: granted anew"


async def test_a_retry_whose_attempt_is_lost_never_runs(core: Core) -> None:
    """It waits for its time: no run is there to be stopped, but one would follow."""
    handle = handle_of(core)
    core.executor.exit_code = 1
    await core.bring(task(max_retries=3, retry_delay=3600.0))
    await core.until_status(T1, "pending")
    await core.until_idle()
    await settle(handle, core, Answer.STALE)
    assert (await core.get(T1)).status is Status.CANCELLED


async def test_a_taken_or_refused_event_ends_no_run(core: Core) -> None:
    handle = handle_of(core)
    for answer, name in [(Answer.TAKEN, "t1"), (Answer.REFUSED, "t2")]:
        await core.bring(task(name))
        run = await core.executor.next_run()
        await core.until_status(task(name), "running")
        await settle(handle, core, answer)
        await turns(100)
        assert run.signals == []


async def test_a_receipt_of_an_event_that_nobody_read_ends_nothing(core: Core) -> None:
    handle = handle_of(core)
    await core.bring(T1)
    run = await core.executor.next_run()
    await core.until_status(T1, "running")
    await handle.settle([Receipt(seq=1, answer=Answer.STALE)])
    assert run.signals == []


async def test_a_cancel_that_the_disk_has_no_room_for_is_made_when_the_receipt_comes_again(
    core: Core,
) -> None:
    handle = handle_of(core)
    core.executor.exit_code = 1
    await core.bring(task(max_retries=3, retry_delay=3600.0))
    await core.until_status(T1, "pending")
    await core.until_idle()
    teller(core).answer = Answer.STALE
    receipts = await handle.report(await handle.outbox(limit=9))
    core.store.fail("save_all", StoreFull("no room"))
    with pytest.raises(StoreFull):
        await handle.settle(receipts)
    await handle.settle(receipts)
    assert (await core.get(T1)).status is Status.CANCELLED
    await until(lambda: not handle._outstanding)
