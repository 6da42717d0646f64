"""A move is made whole or not at all, with its event."""

from dataclasses import replace
from typing import Any

import pytest

from agent_core.clock import Instant
from agent_core.errors import Conflict, StoreFull
from agent_core.lifecycle import FINAL, TRANSITIONS, EventKind, Move, Status
from agent_core.models import Outcome, Reason, Task
from tests.agent_core.core import Core, task

EXITED = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"out", ended_at=9.0)
FAILED = Outcome(reason=Reason.EXITED, exit_code=3)


async def stands(core: Core, status: Status, **fields: Any) -> Task:
    """A task that stands there in the store."""
    now = Instant.now(core.clock)
    given = task(status=status, start_id="s1", assigned_at=now, started_at=now, run_no=1, **fields)
    await core.add(given)
    return given


def needs(move: Move) -> dict[str, Any]:
    event = TRANSITIONS[move].event
    return {"outcome": FAILED} if event in {EventKind.RUN, EventKind.COMPLETE} else {}


@pytest.mark.parametrize("move", list(Move))
async def test_every_row_of_the_table_is_saved_with_the_event_that_it_names(
    core: Core, move: Move
) -> None:
    row = TRANSITIONS[move]
    source = min(row.sources)
    before = await stands(core, source)
    after = await core.bench.moves.make(before, move, **needs(move))
    stored = await core.get(before)
    assert after.status is stored.status is row.target
    kinds = [kind for kind, _ in await core.events()]
    assert kinds == ([row.event.value] if row.event else [])
    assert core.stored == len(kinds)


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("move", list(Move))
async def test_what_is_not_in_the_table_is_a_conflict_and_changes_nothing(
    core: Core, status: Status, move: Move
) -> None:
    if status in TRANSITIONS[move].sources:
        return
    before = await stands(core, status)
    with pytest.raises(Conflict, match=f"a task that is {status.value} cannot {move.value}"):
        await core.bench.moves.make(before, move, **needs(move))
    assert (await core.get(before)).status is status
    assert core.store.calls.count("save_all") == 0
    assert await core.events() == []


@pytest.mark.parametrize("status", sorted(FINAL))
def test_nothing_leads_out_of_a_final_state(status: Status) -> None:
    assert all(status not in row.sources for row in TRANSITIONS.values())


async def test_of_two_who_move_one_task_the_second_changes_nothing(core: Core) -> None:
    before = await stands(core, Status.RUNNING)
    await core.bench.moves.make(before, Move.COMPLETE, outcome=EXITED)
    with pytest.raises(Conflict, match="t1 is not running any more"):
        await core.bench.moves.make(before, Move.CANCEL, outcome=FAILED)
    stored = await core.get(before)
    assert stored.status is Status.COMPLETED
    assert stored.outcome == EXITED
    assert await core.events() == [("complete", "t1")]
    assert core.stored == 1


async def test_a_start_of_another_name_is_another_start(core: Core) -> None:
    before = await stands(core, Status.ASSIGNED)
    with pytest.raises(Conflict):
        await core.bench.moves.make(replace(before, start_id="s0"), Move.BEGIN)
    assert (await core.get(before)).status is Status.ASSIGNED


async def test_a_move_on_a_full_disk_leaves_all_as_it_was_and_may_be_made_again(core: Core) -> None:
    before = await stands(core, Status.RUNNING)
    core.store.fail("save_all", StoreFull("no room"))
    with pytest.raises(StoreFull):
        await core.bench.moves.make(before, Move.COMPLETE, outcome=EXITED)
    assert (await core.get(before)).status is Status.RUNNING
    assert (await core.events(), core.stored) == ([], 0)
    await core.bench.moves.make(before, Move.COMPLETE, outcome=EXITED)
    assert core.stored == 1


async def test_an_end_is_kept_with_its_outcome_and_told_with_it(core: Core) -> None:
    before = await stands(core, Status.RUNNING)
    await core.bench.moves.make(before, Move.COMPLETE, outcome=EXITED)
    assert (await core.get(before)).outcome == EXITED
    [event] = await core.store.outbox(limit=9)
    assert before.started_at
    assert (event.kind, event.key, event.source) == (EventKind.COMPLETE, before.key, "server")
    assert (event.run_no, event.started_at, event.next_run_at) == (1, before.started_at.wall, None)
    assert event.outcome == EXITED
    assert event.at == pytest.approx(core.clock.wall(), abs=60)


async def test_the_run_that_ended_before_another_is_kept_beside_the_task(core: Core) -> None:
    before = await stands(core, Status.RUNNING)
    after = await core.bench.moves.make(
        before, Move.RETRY, outcome=FAILED, due_at=77.0, retry_count=1
    )
    assert (after.due_at, after.retry_count, after.outcome) == (77.0, 1, None)
    stored = await core.get(before)
    assert (stored.due_at, stored.retry_count, stored.outcome) == (77.0, 1, None)
    [run] = await core.store.runs(before.key)
    assert before.started_at
    assert (run.run_no, run.started_at, run.outcome) == (1, before.started_at.wall, FAILED)
    [event] = await core.store.outbox(limit=9)
    assert (event.kind, event.next_run_at, event.outcome) == (EventKind.RUN, 77.0, FAILED)


async def test_nobody_can_say_when_what_made_room_runs_again(core: Core) -> None:
    before = await stands(core, Status.RUNNING)
    await core.bench.moves.make(before, Move.PREEMPT, outcome=FAILED)
    [event] = await core.store.outbox(limit=9)
    assert (event.kind, event.next_run_at) == (EventKind.RUN, None)


async def test_a_start_is_told_with_the_run_that_it_begins(core: Core) -> None:
    before = await stands(core, Status.ASSIGNED)
    later = Instant.now(core.clock).plus(5)
    await core.bench.moves.make(
        before, Move.BEGIN, run_no=2, started_at=later, executor="hand", handle={"pid": 1}
    )
    stored = await core.get(before)
    assert (stored.run_no, stored.executor, stored.handle) == (2, "hand", {"pid": 1})
    [event] = await core.store.outbox(limit=9)
    assert (event.kind, event.run_no, event.started_at) == (EventKind.START, 2, later.wall)
    assert event.outcome is None


async def test_a_task_that_never_began_is_told_without_a_beginning(core: Core) -> None:
    await core.add(task())
    await core.bench.moves.make(task(), Move.REFUSE, outcome=FAILED)
    [event] = await core.store.outbox(limit=9)
    assert (event.started_at, event.run_no) == (None, 0)


async def test_a_local_task_moves_without_an_event(core: Core) -> None:
    local = task(source="", status=Status.RUNNING, start_id="s1", run_no=1)
    await core.add(local)
    await core.bench.moves.make(local, Move.COMPLETE, outcome=EXITED)
    assert (await core.get(local)).status is Status.COMPLETED
    assert (await core.events(), core.stored) == ([], 0)


async def test_a_move_names_only_the_fields_that_it_changes(core: Core) -> None:
    before = await stands(core, Status.PENDING)
    await core.bench.moves.make(before, Move.ASSIGN, start_id="s2")
    calls = zip(core.store.calls, core.store.given, strict=True)
    [[change]] = [given[0] for name, given in calls if name == "save_all"]
    assert change.changes == {"start_id": "s2", "status": Status.ASSIGNED}
