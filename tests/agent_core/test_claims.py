"""A source's loop: as much as there is room for, stored before it counts, alone in its trouble."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent_core.claims import Source
from agent_core.errors import StoreFull, Unreachable
from agent_core.hookspecs import hookimpl
from agent_core.models import Claim, Demand
from tests.agent_core.core import Core, task, turns, until, within

NOTHING = Claim(ask_again=3600.0)


class Work:
    """A source that brings, claim by claim, what a test put there; then nothing for an hour."""

    def __init__(self) -> None:
        self.claims: deque[Any] = deque()
        self.asked: list[int] = []
        self.gate: asyncio.Event | None = None
        self.default: Any = NOTHING
        self.asks_anew = False  # while its question hangs

    @hookimpl
    async def claim(self, demand: Demand) -> Claim:
        self.asked.append(demand.slots)
        if self.gate:
            await self.gate.wait()
        if self.asks_anew and demand.again:
            self.asked.append(demand.again().slots)
        claim = self.claims.popleft() if self.claims else self.default
        if isinstance(claim, BaseException):
            raise claim
        return claim  # type: ignore[no-any-return]


class House:
    def __init__(self, core: Core, work: Work) -> None:
        self.core = core
        self.work = work
        self.stopping = asyncio.Event()
        self.job: asyncio.Task[None] | None = None

    def run(self, name: str = "work") -> "asyncio.Task[None]":
        source = Source(name, self.core.bench, self.core.worker)
        self.job = asyncio.create_task(source.run(self.stopping))
        return self.job

    async def asked(self, times: int) -> None:
        await until(lambda: len(self.work.asked) >= times)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    work = Work()
    core = await Core.open(tmp_path, work=work)
    await core.start()
    made = House(core, work)
    yield made
    made.stopping.set()
    if made.work.gate:
        made.work.gate.set()
    if made.job:
        await asyncio.wait({made.job}, timeout=20)
    await core.close()


async def test_what_it_brings_is_stored_with_its_facts_and_runs(house: House) -> None:
    house.work.claims.append(
        Claim(tasks=[task(source="somebody else")], facts={"request": "7"}, ask_again=3600.0)
    )
    house.run()
    run = await house.core.executor.next_run()
    stored = await house.core.get(task())
    assert stored.source == "work", "whoever brought it reports it"
    assert await house.core.store.get_fact("request") == "7"
    assert house.work.asked == [4]
    run.end()


async def test_facts_alone_are_kept_too(house: House) -> None:
    house.work.claims.append(Claim(facts={"cursor": "1"}, ask_again=3600.0))
    house.run()

    async def kept() -> bool:
        return await house.core.store.get_fact("cursor") == "1"

    await until(kept)


async def test_it_is_asked_at_once_while_it_brings_something(house: House) -> None:
    house.work.claims.extend([Claim(tasks=[task(f"t{n}")]) for n in range(2)])
    house.run()
    await house.asked(3)
    assert house.work.asked[0] == 4


async def test_a_full_agent_asks_again_when_a_slot_is_free(house: House) -> None:
    house.work.claims.append(Claim(tasks=[task(f"t{n}") for n in range(4)]))
    house.run()
    first = await house.core.executor.next_run()
    await house.core.executor.next_run()
    await until(lambda: house.core.worker.demands.slots == 0)
    await turns()
    await until(lambda: set(house.work.asked[1:]) == {0})
    first.end()
    await until(lambda: house.work.asked[-1] == 1)


async def test_a_stop_ends_the_wait_for_room(house: House) -> None:
    house.work.claims.append(Claim(tasks=[task(f"t{n}") for n in range(4)]))
    job = house.run()
    await house.core.executor.next_run()
    await until(lambda: house.core.worker.demands.slots == 0)
    house.stopping.set()
    await within(job)


async def test_a_stop_ends_the_wait_for_the_next_time(house: House) -> None:
    job = house.run()
    await house.asked(1)
    house.stopping.set()
    await within(job)
    assert house.work.asked == [4]


async def test_a_claim_in_flight_is_awaited_and_what_it_brings_is_kept(house: House) -> None:
    house.work.gate = asyncio.Event()
    house.work.claims.append(Claim(tasks=[task()]))
    job = house.run()
    await house.asked(1)
    house.stopping.set()
    await turns()
    assert not job.done()
    house.work.gate.set()
    await within(job)
    assert await house.core.get(task())
    assert house.work.asked == [4]


async def test_more_than_was_asked_for_is_kept_all_the_same(house: House) -> None:
    """The server has granted it: what we throw away would wait for its lease to end."""
    house.core.executor.exit_code = 0
    house.work.claims.append(Claim(tasks=[task(f"t{n}") for n in range(9)], ask_again=3600.0))
    house.run()
    for number in range(9):
        await house.core.until_status_of(f"t{number}", "completed", source="work")
    assert "more came than was asked for" in house.core.said.getvalue()


async def test_what_was_asked_for_anew_is_not_more_than_was_asked_for(house: House) -> None:
    house.core.executor.exit_code = 0
    house.work.asks_anew = True
    house.work.gate = asyncio.Event()
    house.work.claims.append(Claim(tasks=[task(f"t{n}") for n in range(9)], ask_again=3600.0))
    house.run()
    await house.asked(1)
    for _ in range(9):
        house.core.worker.demands.ended(0.01)
    house.work.gate.set()
    for number in range(9):
        await house.core.until_status_of(f"t{number}", "completed", source="work")
    assert house.work.asked[0] < 9 <= house.work.asked[1]
    assert "more came than was asked for" not in house.core.said.getvalue()


async def test_the_same_task_again_is_the_same_task(house: House) -> None:
    house.core.executor.exit_code = 0
    house.work.claims.extend(
        [Claim(tasks=[task(), task()]), Claim(tasks=[task(), task("t2")]), Claim(tasks=[task()])]
    )
    house.run()
    await house.core.until_status_of("t2", "completed", source="work")
    await house.core.until_status_of("t1", "completed", source="work")
    assert len(house.core.executor.runs) == 2


@pytest.mark.parametrize("default", [Claim(), Claim(tasks=[task()])])
async def test_a_source_that_says_nothing_new_at_once_for_ever_does_not_hold_the_agent(
    house: House, default: Claim
) -> None:
    """Its answer came without a pause in it: asked again at once, nothing else would ever run."""
    house.work.default = default
    house.run()
    await house.asked(1)
    await turns(500)
    assert len(house.work.asked) <= 2
    assert house.job
    assert not house.job.done()


async def test_a_source_in_trouble_says_so_once_a_change_and_goes_on(house: House) -> None:
    away, bug = Unreachable("no route"), KeyError("a bug")
    house.work.claims.extend([away, away, away, bug, None, Claim(tasks=[task()], ask_again=3600)])
    house.run()
    await house.core.executor.next_run()
    said = house.core.said.getvalue()
    assert said.count("no work can be claimed now") == 1
    assert "no route" in said
    assert said.count("a source failed") == 2, "an error and an answer that is no claim"
    assert said.count("work is claimed again") == 1


async def test_the_same_trouble_after_a_recovery_is_news_again(house: House) -> None:
    away = Unreachable("no route")
    house.work.claims.extend([away, Claim(tasks=[task()]), away, Claim(tasks=[task("t2")])])
    house.run()
    await house.core.executor.next_run()
    await house.core.executor.next_run()
    assert house.core.said.getvalue().count("no work can be claimed now") == 2


async def test_the_pause_that_a_source_asks_for_is_kept(house: House) -> None:
    house.work.claims.extend([Unreachable("busy", retry_after=500.0), Claim(tasks=[task()])])
    house.run()
    await house.asked(1)
    await until(lambda: "busy" in house.core.said.getvalue())
    await turns(200)
    assert len(house.work.asked) == 1


async def test_what_cannot_be_stored_is_not_run_and_the_source_is_asked_again(
    house: House,
) -> None:
    house.core.store.fail("add", StoreFull("no room"))
    brings = Claim(tasks=[task()], facts={"request": "7"})
    house.work.claims.extend([brings, brings])
    house.run()
    await house.core.executor.next_run()
    assert len(house.work.asked) >= 2
    assert "no work can be claimed now" in house.core.said.getvalue()


async def test_one_source_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    hanging, working = Work(), Work()
    hanging.gate = asyncio.Event()
    working.claims.append(Claim(tasks=[task()], ask_again=3600.0))
    core = await Core.open(tmp_path, hanging=hanging, working=working)
    await core.start()
    house = House(core, hanging)
    jobs = [house.run("hanging"), house.run("working")]
    await core.executor.next_run()
    house.stopping.set()
    hanging.gate.set()
    await within(asyncio.wait(jobs))
    await core.close()
