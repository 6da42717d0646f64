"""Starts that are handed over before they have a slot."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_core import Ahead, Launch, NeverRan, NeverStarted, Resources
from agent_core.testing.executor import appears, begin, end, make_launch
from agent_core_plugins.subprocess_executor import SubprocessExecutor
from tests.agent_core_plugins.subprocess_executor.conftest import end_process, supervisors

Make = Callable[..., SubprocessExecutor]
SCRIPT = "touch began; [ -p go ] && read line <go; exit 0"
FAR = 1e9  # boot time that never comes


class Bench:
    """One executor, runs that end when they are let, and starts that are handed over."""

    def __init__(self, executor: SubprocessExecutor, directory: Path) -> None:
        self.executor = executor
        self.directory = directory
        self.order: list[str] = []
        self.lost: list[str] = []

    def launch(self, *, gated: bool = False, **fields: Any) -> Launch:
        launch = make_launch(self.directory, "/bin/sh", "-c", SCRIPT, **fields)
        if gated:
            os.mkfifo(Path(launch.scratch) / "go")
        return launch

    def start(self, launch: Launch) -> Ahead:
        start = self.executor.execute(launch)
        assert isinstance(start, Ahead)
        return start

    def hand_over(self, launch: Launch, until: float = FAR) -> Ahead:
        start = self.start(launch)
        name = launch.start_id
        assert start.hand_over(
            until, lambda: self.order.append(name), lambda: self.lost.append(name)
        )
        return start

    async def let_go(self, launch: Launch) -> None:
        """Let it end, once the supervisor has all that was handed over."""
        last = self.start(self.launch())
        if last.hand_over(0.0, lambda: None):
            assert await last.recall()
        await asyncio.to_thread((Path(launch.scratch) / "go").write_text, "\n")

    def began(self, launch: Launch) -> bool:
        return (Path(launch.scratch) / "began").exists()

    async def until_begun(self, *launches: Launch) -> None:
        async with asyncio.timeout(20):
            while self.order[-len(launches) :] != [each.start_id for each in launches]:
                await asyncio.sleep(0.005)


@pytest.fixture
async def bench(make: Make, tmp_path: Path) -> Bench:
    return Bench(make(), tmp_path)


async def test_it_begins_by_itself_when_a_run_before_it_has_ended_and_in_order(
    bench: Bench,
) -> None:
    first, second, third = bench.launch(gated=True), bench.launch(gated=True), bench.launch()
    running = await begin(bench.executor, first)
    following = [bench.hand_over(second), bench.hand_over(third)]
    await appears(Path(first.scratch) / "began")
    assert not bench.order
    await bench.let_go(first)
    await bench.until_begun(second)
    assert (await end(running)).success
    execution = await following[0]
    assert not bench.began(third)
    await bench.let_go(second)
    await bench.until_begun(second, third)
    assert (await end(execution)).success
    assert (await end(await following[1])).success
    assert execution.started_at
    assert bench.order == [second.start_id, third.start_id]


async def test_each_run_that_ends_lets_one_begin(bench: Bench) -> None:
    before = [bench.launch(gated=True) for _ in range(2)]
    running = [await begin(bench.executor, launch) for launch in before]
    after = [bench.launch(gated=True) for _ in range(3)]
    starts = [bench.hand_over(launch) for launch in after]
    for launch in before:
        await bench.let_go(launch)
    await bench.until_begun(*after[:2])
    for each in running:
        await end(each)
    assert await starts[2].recall()
    for start, launch in zip(starts[:2], after, strict=False):
        await bench.let_go(launch)
        assert (await end(await start)).success
    assert not bench.began(after[2])


async def test_many_in_a_row_need_nobody_between_them(bench: Bench) -> None:
    launches = [bench.launch() for _ in range(50)]
    first = bench.launch(gated=True)
    running = await begin(bench.executor, first)
    starts = [bench.hand_over(launch) for launch in launches]
    await bench.let_go(first)
    await bench.until_begun(*launches)
    for start in starts:
        assert (await end(await start)).success
    assert (await end(running)).success


async def test_awaited_it_begins_at_once(bench: Bench) -> None:
    first, second, third = bench.launch(gated=True), bench.launch(), bench.launch(gated=True)
    running = await begin(bench.executor, first)
    start, other = bench.hand_over(second), bench.hand_over(third)
    execution = await other  # whose end would let the one before it begin by itself
    assert (await end(await start)).success
    assert not bench.order, "who awaits it needs no other word"
    for launch in (third, first):
        await bench.let_go(launch)
    assert (await end(execution)).success
    await end(running)


async def test_recalled_it_never_begins_and_may_be_handed_over_again(bench: Bench) -> None:
    first, second, third = (bench.launch(gated=True) for _ in range(3))
    running = await begin(bench.executor, first)
    start, other = bench.hand_over(second), bench.hand_over(third)
    assert await start.recall()
    await bench.let_go(first)
    await bench.until_begun(third)
    await end(running)
    assert not bench.began(second)
    assert start.hand_over(FAR, lambda: bench.order.append(second.start_id))
    await bench.let_go(third)
    await bench.until_begun(third, second)
    await end(await other)
    await bench.let_go(second)
    assert (await end(await start)).success


async def test_what_has_begun_is_not_recalled(bench: Bench) -> None:
    first, second = bench.launch(gated=True), bench.launch(gated=True)
    running = await begin(bench.executor, first)
    start = bench.hand_over(second)
    await bench.let_go(first)
    assert (await running.wait()).success
    assert not await start.recall()
    assert bench.order == [second.start_id], "that it began is said before"
    await bench.let_go(second)
    assert (await end(await start)).success


async def test_nobody_follows_a_run_that_was_told_to_end(bench: Bench) -> None:
    first, second = bench.launch(gated=True), bench.launch()
    running = await begin(bench.executor, first)
    start = bench.hand_over(second)
    await running.terminate("makes room")
    assert (await end(running)).signal == "SIGTERM"
    assert await start.recall()
    assert not bench.began(second)


async def test_nobody_follows_a_run_that_held_more_than_a_slot(bench: Bench) -> None:
    first = bench.launch(gated=True, resources=Resources(gpus=1), devices=("GPU-1",))
    second = bench.launch()
    running = await begin(bench.executor, first)
    start = bench.hand_over(second)
    await bench.let_go(first)
    await end(running)
    assert await start.recall()
    assert not bench.began(second)


async def test_none_begins_by_itself_after_its_time(bench: Bench) -> None:
    first, late, second = bench.launch(gated=True), bench.launch(), bench.launch(gated=True)
    running = await begin(bench.executor, first)
    start, other = bench.hand_over(late, until=1.0), bench.hand_over(second)
    await bench.let_go(first)
    await bench.until_begun(second)
    await end(running)
    assert not bench.began(late)
    await bench.let_go(second)
    await end(await other)
    assert (await end(await start)).success, "awaited, it begins all the same"


async def test_what_cannot_run_says_so_and_its_place_is_the_agents_again(bench: Bench) -> None:
    first, third = bench.launch(gated=True), bench.launch()
    bad = make_launch(bench.directory, "/no/such/program")
    running = await begin(bench.executor, first)
    starts = [bench.hand_over(bad), bench.hand_over(third)]
    await bench.let_go(first)
    await end(running)
    with pytest.raises(NeverRan, match="no program"):
        await starts[0]
    assert await starts[1].recall()
    assert not bench.order
    assert not bench.began(third)


@pytest.mark.parametrize("awaited", [False, True], ids=["recalled", "awaited"])
async def test_where_no_fifo_can_be_made_another_supervisor_begins_it(
    bench: Bench, runtime: Path, awaited: bool
) -> None:
    first, second = bench.launch(gated=True), bench.launch()
    running = await begin(bench.executor, first)
    start = bench.hand_over(second)
    (place,) = runtime.iterdir()
    await appears(Path(first.scratch) / "began")
    (place / "f").rename(place / "g")
    (place / "f").write_text("no directory")
    await bench.let_go(first)
    await end(running)
    if awaited:
        assert (await end(await start)).success
        assert len(supervisors(runtime)) == 2
    else:
        assert await start.recall()
        assert not bench.began(second)


async def test_nothing_begins_by_itself_once_the_agent_is_gone(bench: Bench, make: Make) -> None:
    first, second = bench.launch(gated=True), bench.launch()
    await begin(bench.executor, first)
    bench.hand_over(second)
    await appears(Path(first.scratch) / "began")
    bench.executor.close()
    other = make()
    found: Any = await other.reattach(first, True)
    await bench.let_go(first)
    assert (await end(found)).success
    assert isinstance(await other.reattach(second, False), NeverStarted)
    assert (await end(await begin(other, bench.launch()))).success  # in whose place nobody begins
    assert (await end(await begin(other, bench.launch()))).success
    assert not bench.began(second)


async def test_nobody_follows_a_run_of_an_agent_that_is_gone(bench: Bench, make: Make) -> None:
    first, second = bench.launch(gated=True), bench.launch()
    await begin(bench.executor, first)
    await appears(Path(first.scratch) / "began")
    bench.executor.close()
    later = Bench(make(), bench.directory)
    found: Any = await later.executor.reattach(first, True)
    await end(await begin(later.executor, later.launch()))
    start = later.hand_over(second)  # its task need not be one that this agent gave a slot
    await later.let_go(first)
    assert (await end(found)).success
    assert await start.recall()
    assert not bench.began(second)


@pytest.mark.parametrize("awaited", [False, True], ids=["recalled", "awaited"])
async def test_a_killed_supervisor_begins_nothing_more(
    bench: Bench, runtime: Path, awaited: bool
) -> None:
    first, second = bench.launch(gated=True), bench.launch()
    await begin(bench.executor, first)
    start = bench.hand_over(second)
    await appears(Path(first.scratch) / "began")
    end_process(*supervisors(runtime))
    if awaited:
        assert (await end(await start)).success, "under another one"
    else:
        assert await start.recall()
        assert not bench.began(second)
    await bench.let_go(first)


@pytest.mark.parametrize("awaited", [False, True], ids=["recalled", "awaited"])
async def test_what_began_under_a_supervisor_that_was_killed_then_is_found(
    bench: Bench, runtime: Path, awaited: bool
) -> None:
    first, second = bench.launch(gated=True), bench.launch(gated=True)
    await begin(bench.executor, first)
    start = bench.hand_over(second)
    await bench.let_go(first)
    await appears(Path(second.scratch) / "began")
    end_process(*supervisors(runtime))
    if not awaited:
        assert not await start.recall()
        assert bench.order == [second.start_id], "it says so, once"
    execution = await start
    await bench.let_go(second)
    assert (await end(execution)).error.startswith("the supervisor that started it is gone")


@pytest.mark.parametrize("awaited", [False, True], ids=["recalled", "awaited"])
async def test_what_began_and_was_not_heard_of_when_the_link_broke_is_found(
    bench: Bench, awaited: bool
) -> None:
    first, second = bench.launch(gated=True), bench.launch(gated=True)
    running = await begin(bench.executor, first)
    start = bench.hand_over(second)
    link = bench.executor._house.ready
    assert link is not None
    await bench.let_go(first)
    deadline = time.monotonic() + 20
    while not bench.began(second):  # and this side hears of nothing
        assert time.monotonic() < deadline
        time.sleep(0.001)
    link.close()
    if not awaited:
        assert not await start.recall()
        assert bench.order == [second.start_id]
    execution = await start
    await bench.let_go(second)
    assert (await end(execution)).success
    assert (await end(running)).success


async def test_without_a_supervisor_at_hand_nothing_is_handed_over(bench: Bench) -> None:
    launch = bench.launch()
    start = bench.start(launch)
    assert not start.hand_over(FAR, lambda: None)
    assert await start.recall()
    assert (await end(await start)).success


async def test_a_start_that_cannot_be_asked_for_says_so_when_it_is_awaited(bench: Bench) -> None:
    await end(await begin(bench.executor, bench.launch()))
    start = bench.start(bench.launch(start_id="no id!"))
    assert not start.hand_over(FAR, lambda: None)
    with pytest.raises(NeverRan, match="no start id"):
        await start


async def test_what_a_killed_supervisor_had_says_that_it_waits_no_more(
    bench: Bench, runtime: Path
) -> None:
    first, second, third = bench.launch(gated=True), bench.launch(gated=True), bench.launch()
    running = await begin(bench.executor, first)
    starts = [bench.hand_over(second), bench.hand_over(third)]
    await bench.let_go(first)
    await bench.until_begun(second)
    end_process(*supervisors(runtime))
    async with asyncio.timeout(20):
        while not bench.lost:
            await asyncio.sleep(0.005)
    assert bench.lost == [third.start_id], "the other has begun"
    assert await starts[1].recall()
    assert not await starts[0].recall()
    await end(running)
    await bench.let_go(second)


async def test_what_cannot_run_says_that_it_waits_no_more_and_so_does_what_is_one_too_many(
    bench: Bench,
) -> None:
    first, third = bench.launch(gated=True), bench.launch()
    bad = make_launch(bench.directory, "/no/such/program")
    running = await begin(bench.executor, first)
    starts = [bench.hand_over(bad), bench.hand_over(third)]
    await bench.let_go(first)
    await end(running)
    assert bench.lost == [bad.start_id]
    assert await starts[0].recall()
    again = [bench.hand_over(bench.launch()) for _ in range(1000)]
    async with asyncio.timeout(20):
        while len(bench.lost) < 2:
            await asyncio.sleep(0.005)
    assert bench.lost[1:] == [again[-1]._launch.start_id]  # type: ignore[attr-defined]
    assert all([await start.recall() for start in (starts[1], *again)])
    assert bench.order == []


async def test_what_is_recalled_or_awaited_is_not_called_lost_when_it_begins(bench: Bench) -> None:
    first, second = bench.launch(gated=True), bench.launch()
    running = await begin(bench.executor, first)
    start = bench.hand_over(second)
    assert (await end(await start)).success
    await bench.let_go(first)
    await end(running)
    assert bench.lost == []
