"""What happened is stored together and in order, and a store in trouble loses none of it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agent_core.behind import Behind
from agent_core.errors import Conflict, StoreError, StoreFull
from agent_core.lifecycle import EventKind, Status
from agent_core.models import Change, Task
from agent_core.testing.making import make_event, make_outcome
from tests.agent_core.core import Core, quick, task, turns, until, within

T1, T2, T3 = task("t1"), task("t2"), task("t3")
ASSIGNED: dict[str, Any] = {"status": Status.ASSIGNED, "start_id": "s"}


def behind(core: Core) -> Behind:
    return Behind(core.store, core.clock, core._event_stored, quick)


def assigned(given: Task) -> Task:
    return replace(given, **ASSIGNED)


def begin(given: Task) -> Change:
    event = make_event(given, EventKind.START)
    changes = {"status": Status.RUNNING, "run_no": 1, "handle": {"pid": 1}}
    return Change(before=assigned(given), changes=changes, events=[event])


def end(given: Task) -> Change:
    before = replace(assigned(given), status=Status.RUNNING, run_no=1)
    changes = {"status": Status.COMPLETED, "outcome": make_outcome(ended_at=1.0)}
    return Change(before=before, changes=changes, events=[make_event(given, EventKind.COMPLETE)])


async def stored(core: Core, *tasks: Task) -> None:
    """These have a start."""
    await core.add(*tasks)
    assert all(await core.store.save_all([Change(before=each, changes=ASSIGNED) for each in tasks]))
    core.store.calls.clear()


async def test_what_is_in_no_hurry_is_stored_with_others_and_in_order(core: Core) -> None:
    await stored(core, T1, T2)
    changes = behind(core)
    waits = [
        changes.put(change, soon=False, keep=True)
        for change in (begin(T1), begin(T2), end(T2), end(T1))
    ]
    await within(asyncio.gather(*waits))
    assert core.store.calls.count("save_all") == 1
    assert [(await core.get(each)).status for each in (T1, T2)] == [Status.COMPLETED] * 2
    told = await core.events()
    for name in ("t1", "t2"):
        assert [kind for kind, of in told if of == name] == ["start", "complete"]
    assert core.stored == 1, "said once for all of them"


async def test_a_begin_and_an_end_are_one_row_written_once(core: Core) -> None:
    await stored(core, T1)
    changes = behind(core)
    changes.put(begin(T1), soon=False, keep=True)
    await within(changes.put(end(T1), soon=False, keep=True))
    given = [args[0] for name, args in zip(core.store.calls, core.store.given[-1:], strict=True)]
    [[change]] = given
    assert [event.kind for event in change.events] == [EventKind.START, EventKind.COMPLETE]
    assert "handle" not in change.changes, "what has ended is not found again"
    done = await core.get(T1)
    assert (done.status, done.run_no) == (Status.COMPLETED, 1)


async def test_a_hurry_takes_along_what_waits(core: Core) -> None:
    await stored(core, T1)
    await core.add(T2)
    changes = behind(core)
    first = changes.put(begin(T1), soon=False, keep=True)
    await turns(2)
    await within(changes.put(Change(before=T2, changes=ASSIGNED), soon=True, keep=False))
    assert first.done()
    assert core.store.calls.count("save_all") == 1


async def test_a_conflict_is_told_to_whom_it_belongs(core: Core) -> None:
    await stored(core, T1, T2)
    await core.store.save(assigned(T1), {"status": Status.PENDING})
    changes = behind(core)
    lost, kept = (changes.put(begin(each), soon=True, keep=True) for each in (T1, T2))
    with pytest.raises(Conflict, match="task t1 is not assigned any more"):
        await within(lost)
    await within(kept)
    assert await core.events() == [("start", "t2")]


async def test_one_row_that_cannot_be_kept_holds_up_its_own_task_alone(core: Core) -> None:
    await stored(core, T1, T2)
    changes = behind(core)
    bad = Change(before=assigned(T1), changes={"executor": "\ud800"})
    stuck = changes.put(bad, soon=True, keep=True)
    later = changes.put(begin(T1), soon=True, keep=True)
    await within(changes.put(begin(T2), soon=True, keep=True))
    await within(changes.put(end(T2), soon=True, keep=True))
    last = changes.put(end(T1), soon=True, keep=True)
    await until(lambda: core.store.calls.count("save_all") > 8)
    assert [each.done() for each in (stuck, later, last)] == [False] * 3
    assert await core.events() == [("start", "t2"), ("complete", "t2")]
    assert core.said.getvalue().count("cannot be saved, trying again") == 1
    await within(changes.close())


async def test_a_full_disk_delays_what_happened_and_loses_none(core: Core) -> None:
    await stored(core, T1, T2)
    changes = behind(core)
    core.store.fail("save_all", *[StoreFull("no room")] * 7)
    waits = [changes.put(begin(each), soon=False, keep=True) for each in (T1, T2)]
    await until(lambda: len(changes._stuck) == 2)
    waits += [changes.put(end(each), soon=False, keep=True) for each in (T2, T1)]
    await within(asyncio.gather(*waits))
    told = await core.events()
    for name in ("t1", "t2"):
        assert [kind for kind, of in told if of == name] == ["start", "complete"]


async def test_what_need_not_be_is_given_up_on_a_full_disk(core: Core) -> None:
    await core.add(T1)
    core.store.fail("save_all", StoreFull("no room"))
    change = Change(before=T1, changes=ASSIGNED)
    with pytest.raises(StoreFull):
        await within(behind(core).put(change, soon=True, keep=False))
    assert (await core.get(T1)).status is Status.PENDING


async def test_a_bug_of_the_store_reaches_everybody_who_waits(core: Core) -> None:
    await stored(core, T1, T2)
    changes = behind(core)
    core.store.fail("save_all", RuntimeError("a bug"))
    waits = [changes.put(begin(each), soon=True, keep=True) for each in (T1, T2)]
    found = await within(asyncio.gather(*waits, return_exceptions=True))
    assert [str(each) for each in found] == ["a bug"] * 2


async def test_after_the_close_nothing_more_is_stored(core: Core) -> None:
    await stored(core, T1, T2)
    changes = behind(core)
    core.store.fail("save_all", *[StoreError("locked")] * 1000)
    changes.put(begin(T1), soon=True, keep=True)
    await until(lambda: bool(changes._stuck))
    changes.put(begin(T2), soon=False, keep=True)
    await within(changes.close())
    core.store.calls.clear()
    await asyncio.sleep(0.02)
    assert core.store.calls == []
    assert await core.events() == []
