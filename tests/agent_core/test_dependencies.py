"""Local tasks that wait for others: they cost nothing while they wait, and end with those."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent_core.api.resources import Resources
from agent_core.api.wire import Code
from agent_core.dependencies import MOST_IDS, Dependencies, Ends
from agent_core.errors import NotAccepted, StoreError, StoreFull
from agent_core.feed import NEVER
from agent_core.lifecycle import Status
from agent_core.models import Outcome, Reason, Task, Verdict
from tests.agent_core.core import Core, task, turns, within


def local(name: str, *after: str, **fields: Any) -> Task:
    return task(name, source="", depends_on=after, **fields)


async def settle(core: Core) -> None:
    for _ in range(8):
        await turns()
        await core.store.next_due(0.0)
    await turns()


async def error_of(core: Core, name: str) -> str:
    ended = await core.until_status(local(name), "failed")
    assert ended.outcome
    assert (ended.outcome.reason, ended.outcome.error_code) == (
        Reason.DEPENDENCY,
        Code.DEPENDENCY,
    )
    return ended.outcome.error


# --- submitted here


async def test_what_is_submitted_here_runs_and_nobody_is_told(core: Core) -> None:
    await core.start()
    stored = await core.local.submit(task("", source="elsewhere", attempt_id="theirs"))
    assert stored.id
    assert (stored.source, stored.attempt_id) == ("", "")
    assert stored.created_at == pytest.approx(core.clock.wall(), abs=60)
    (await core.executor.next_run()).end()
    await core.until_status(stored, "completed")
    assert await core.events() == []


async def test_it_is_judged_like_any_other_and_a_refusal_is_its_end(core: Core) -> None:
    await core.start()
    core.judge.verdicts["t1"] = Verdict.deny("not here")
    await core.local.submit(local("t1"))
    refused = await core.get(local("t1"))
    assert refused.outcome
    assert (refused.status, refused.outcome.error) == (Status.FAILED, "not here")
    await core.local.submit(local("t2", resources=Resources(gpus=1)))
    lacking = await core.get(local("t2"))
    assert lacking.outcome
    assert lacking.outcome.error_code == Code.NEVER_RAN


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (local("t1"), Code.CONFLICT, "a task t1 was submitted here before"),
        (local("t1", "t0"), Code.CONFLICT, "a task t1 was submitted here before"),
        (local("t2", "unknown"), Code.INVALID, "depends_on: no task unknown was submitted here"),
        (local("t2", "t2"), Code.INVALID, "depends_on: a task cannot wait for itself"),
        (
            local("t2", *(f"t{n}" for n in range(MOST_IDS + 1))),
            Code.INVALID,
            "depends_on: at most 100 ids",
        ),
        (local("t2", priority=0), Code.INVALID, "priority: from 1, the most urgent, to 10"),
        (local("t2", timeout=0), Code.INVALID, "timeout: more than 0 seconds"),
        (local("t" * 129), Code.INVALID, "id: at most 128 printable characters"),
        (local("t2\n"), Code.INVALID, "id: at most 128 printable characters"),
        (local("t2", run_no=1), Code.INVALID, "a task that is submitted has no past"),
    ],
)
async def test_what_cannot_be_taken_is_refused_and_nothing_of_it_is_kept(
    core: Core, given: Task, code: Code, words: str
) -> None:
    await core.start()
    await core.local.submit(local("t0"))
    await core.local.submit(local("t1"))
    with pytest.raises(NotAccepted) as caught:
        await core.local.submit(given)
    assert (caught.value.code, str(caught.value)) == (code, words)
    assert len(await core.store.tasks()) == 2
    assert len(core.worker.dependencies) == 0


async def test_of_two_with_one_id_at_once_the_first_is_taken(core: Core) -> None:
    await core.start()
    await core.local.submit(local("t0"))
    answers = await asyncio.gather(
        *(core.local.submit(local("t1", "t0", command=str(n))) for n in range(3)),
        return_exceptions=True,
    )
    assert [isinstance(answer, NotAccepted) for answer in answers].count(True) == 2
    (await core.executor.next_run()).end()
    assert (await core.executor.next_run()).launch.key.task_id == "t1"


async def test_what_cannot_be_kept_is_not_waited_for(core: Core) -> None:
    await core.start()
    await core.local.submit(local("t0"))
    core.store.fail("add", StoreFull("no room"))
    with pytest.raises(StoreFull):
        await core.local.submit(local("t1", "t0"))
    assert len(core.worker.dependencies) == 0
    await core.local.submit(local("t1", "t0"))
    assert len(core.worker.dependencies) == 1


async def test_who_gives_up_while_it_is_stored_leaves_no_half_of_it(core: Core) -> None:
    await core.start()
    await core.local.submit(local("t0"))
    gate = core.store.hold("add")
    submitting = asyncio.create_task(core.local.submit(local("t1", "t0")))
    await within(core.store.entered["add"].wait())
    submitting.cancel()
    await asyncio.wait({submitting})
    gate.set()
    (await core.executor.next_run()).end()
    assert (await core.executor.next_run()).launch.key.task_id == "t1"


# --- waiting


async def test_it_begins_when_the_last_of_them_has_completed(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a"))
    await core.local.submit(local("b"))
    await core.local.submit(local("c", "a", "b", "a"))
    runs = {run.launch.key.task_id: run for run in [await core.executor.next_run() for _ in "ab"]}
    assert (await core.get(local("c"))).due_at == NEVER
    assert core.worker.demands.slots == 2, "it takes nobody's place"
    assert core.worker.waiting.feed.until_due() is None, "and nothing is polled for it"
    runs["a"].end()
    await core.until_status(local("a"), "completed")
    await settle(core)
    assert len(core.executor.runs) == 2
    runs["b"].end()
    assert (await core.executor.next_run()).launch.key.task_id == "c"
    assert len(core.worker.dependencies) == 0


async def test_it_does_not_begin_before_the_end_of_the_other_is_committed(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a"))
    await core.local.submit(local("b", "a"))
    run = await core.executor.next_run()
    await core.until_status(local("a"), "running")
    gate = core.store.hold("save_all", before=True)
    run.end()
    await within(core.store.entered["save_all"].wait())
    await settle(core)
    assert len(core.executor.runs) == 1
    gate.set()
    assert (await core.executor.next_run()).launch.key.task_id == "b"


async def test_what_they_are_when_it_comes_counts(core: Core) -> None:
    await core.start()
    core.executor.exit_code = 0
    await core.local.submit(local("done"))
    await core.until_status(local("done"), "completed")
    await core.local.submit(local("after", "done"))
    await core.until_status(local("after"), "completed")
    core.executor.exit_code = 3
    await core.local.submit(local("bad"))
    await core.until_status(local("bad"), "failed")
    await core.local.submit(local("in vain", "bad", "done"))
    assert await error_of(core, "in vain") == "dependency bad did not complete: exit code 3"


async def test_an_end_between_the_look_and_the_store_is_not_missed(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a"))
    run = await core.executor.next_run()
    gate = core.store.hold("add", before=True)
    submitting = asyncio.create_task(core.local.submit(local("b", "a")))
    await within(core.store.entered["add"].wait())
    run.end()
    await core.until_status(local("a"), "completed")
    await core.until_idle()
    gate.set()
    await within(submitting)
    assert (await core.executor.next_run()).launch.key.task_id == "b"


# --- a failure and what follows


async def test_a_failure_ends_all_that_wait_with_the_chain_of_reasons(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a"))
    await core.local.submit(local("b", "a"))
    await core.local.submit(local("c", "b"))
    await core.local.submit(local("d", "c", "a"))
    (await core.executor.next_run()).end(3)
    assert await error_of(core, "b") == "dependency a did not complete: exit code 3"
    words = "dependency b did not complete: dependency a did not complete: exit code 3"
    assert await error_of(core, "c") == words
    assert await error_of(core, "d") == "dependency a did not complete: exit code 3"
    assert len(core.executor.runs) == 1
    assert len(core.worker.dependencies) == 0
    assert core.worker.dependencies._by_id == {}


async def test_a_retry_is_no_end(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a", max_retries=1, retry_delay=0.0))
    await core.local.submit(local("b", "a"))
    (await core.executor.next_run()).end(1)
    again = await core.executor.next_run()
    assert (await core.get(local("b"))).status is Status.PENDING
    again.end(0)
    assert (await core.executor.next_run()).launch.key.task_id == "b"


async def test_a_cancelled_one_takes_those_with_it_that_wait_for_it(core: Core) -> None:
    await core.start()
    for name, after in (("a", []), ("b", ["a"]), ("c", ["b"])):
        await core.local.submit(local(name, *after))
    await core.executor.next_run()
    assert await core.worker.cancel(local("b").key, code=1, reason="by Ada")
    assert await error_of(core, "c") == "dependency b did not complete: by Ada"
    assert (await core.get(local("b"))).status is Status.CANCELLED
    assert len(core.worker.dependencies) == 0


async def test_one_that_is_cancelled_while_it_waits_is_not_released_any_more(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a"))
    await core.local.submit(local("b", "a"))
    run = await core.executor.next_run()
    await core.worker.cancel(local("b").key, code=1, reason="by Ada")
    run.end()
    await core.until_status(local("a"), "completed")
    await settle(core)
    assert (await core.get(local("b"))).status is Status.CANCELLED
    assert len(core.executor.runs) == 1


async def test_a_chain_of_reasons_stays_short_and_names_both_ends(core: Core) -> None:
    await core.start()
    await core.local.submit(local("t0"))
    for number in range(1, 60):
        await core.local.submit(local(f"t{number}", f"t{number - 1}"))
    (await core.executor.next_run()).end(7)
    words = await error_of(core, "t59")
    assert len(words) <= 1000
    assert words.startswith("dependency t58 did not complete: dependency t57")
    assert words.endswith("dependency t0 did not complete: exit code 7")


async def test_hundreds_are_released_by_one_end(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a"))
    for number in range(120):
        await core.local.submit(local(f"b{number}", "a"))
    run = await core.executor.next_run()
    core.executor.exit_code = 0
    run.end()
    await core.until_status(local("b119"), "completed")
    await core.until_idle()
    assert len(core.executor.runs) == 121


# --- a full disk, a kill


async def test_a_release_that_cannot_be_saved_is_tried_again(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a"))
    await core.local.submit(local("b", "a"))
    run = await core.executor.next_run()
    await core.until_status(local("a"), "running")
    core.store.fail("save", StoreFull("no room"), StoreError("still none"))
    run.end()
    assert (await core.executor.next_run()).launch.key.task_id == "b"
    assert core.said.getvalue().count("waiting tasks cannot be released now") == 2


async def test_a_fault_that_nobody_foresaw_ends_the_agent_loudly(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a"))
    await core.local.submit(local("b", "a"))
    run = await core.executor.next_run()
    await core.until_status(local("a"), "running")
    core.store.fail("save", RuntimeError("a bug"))
    run.end()
    assert core.releasing
    with pytest.raises(RuntimeError, match="a bug"):
        await within(core.releasing)


async def test_after_a_kill_what_waits_is_known_and_goes_on(tmp_path: Path) -> None:
    core = await Core.open(tmp_path)
    await core.start()
    for name, after in (("a", []), ("b", ["a"]), ("x", []), ("y", ["x"]), ("z", ["y"])):
        await core.local.submit(local(name, *after))
    runs = {run.launch.key.task_id: run for run in [await core.executor.next_run() for _ in "ax"]}
    for name in runs:
        await core.until_status(local(name), "running")
    core = await core.again()
    runs["x"].end(1)  # both end while nobody looks
    runs["a"].end(0)
    await core.start()
    assert (await core.executor.next_run()).launch.key.task_id == "b"
    assert (await error_of(core, "z")).endswith("dependency x did not complete: exit code 1")
    await core.close()


async def test_after_a_kill_between_an_end_and_the_release_it_is_released(tmp_path: Path) -> None:
    core = await Core.open(tmp_path)
    await core.add(
        local("a", status=Status.COMPLETED, run_no=1),
        replace(local("b", "a"), due_at=NEVER),
        replace(local("c", "gone"), due_at=NEVER),
    )
    await core.start()
    assert (await core.executor.next_run()).launch.key.task_id == "b"
    words = "dependency gone did not complete: nobody knows it any more"
    assert await error_of(core, "c") == words
    await core.close()


async def test_a_claimed_task_does_not_wait_here_its_server_sees_to_that(core: Core) -> None:
    await core.start()
    await core.bring(task("t1", depends_on=("unknown",)))
    assert (await core.executor.next_run()).launch.key.task_id == "t1"


async def test_no_more_wait_for_others_than_fit(core: Core) -> None:
    async def failed(waiting: Task, outcome: Outcome) -> None: ...

    ends = Ends(met=lambda waiting: None, failed=failed)
    few = Dependencies(core.store, core.clock, ends, most=1)
    await core.add(local("a"))
    await few.check(local("b", "a"))
    few.hold_back(local("b", "a"), stored=False)
    with pytest.raises(NotAccepted, match="1 tasks wait for others already") as caught:
        await few.check(local("c", "a"))
    assert caught.value.code == Code.FULL


async def test_what_waits_for_others_is_not_held_in_memory(core: Core) -> None:
    await core.start()
    await core.local.submit(local("a"))
    for number in range(20):
        await core.local.submit(local(f"b{number}", "a"))
    assert len(core.worker._held) == 1
