"""Claims that wait at the server: told anew when the demand changes, and never given up."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from agent_core import Claim, Demand, Device, Free, Signal, Unreachable
from agent_core.testing.clock import TurnedClock
from agent_core.testing.http_server import NOT_FOUND, Reply, Request, ScriptedServer, answer
from agent_core_plugins.server_client.claiming import GATHER, GATHER_SHORT
from agent_core_plugins.server_client.hanging import Question

CLAIM, REGISTER = "/api/v1/agent/tasks/claim", "/api/v1/agent/register"
NOTHING = answer({"tasks": []})


def task(name: str) -> dict[str, Any]:
    return {"id": name, "attempt_id": f"{name}-1", "command": "true"}


class Desk:
    """Lets claims wait as a control plane does: a later one with the same id ends the earlier."""

    def __init__(self) -> None:
        self.held: list[tuple[dict[str, Any], asyncio.Future[Reply]]] = []
        self.ends_with: Reply = NOTHING  # what an earlier claim is answered when it is ended

    async def __call__(self, request: Request) -> Reply:
        body = request.json()
        for earlier, answered in self.held:
            if earlier["request_id"] == body["request_id"] and not answered.done():
                answered.set_result(self.ends_with)
        if not body["wait_sec"]:
            return NOTHING
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.held.append((body, future))
        return await future

    def give(self, *names: str, **more: Any) -> None:
        _, newest = self.held[-1]
        newest.set_result(answer({"tasks": [task(name) for name in names], **more}))


class Need:
    """What an agent could take, as a test sets it."""

    def __init__(self, slots: int = 1, **fields: Any) -> None:
        self.changed, self.hurry = Signal(), Signal()
        self.set(slots, **fields)

    def set(self, slots: int, *, idle: int | None = None, **fields: Any) -> None:
        self._fields = {"slots": slots, "free": Free(slots=slots if idle is None else idle)}
        self._fields |= {"short": False, **fields}
        self.changed.send()

    def hurries(self, **fields: Any) -> None:
        """It is so by now, which is no news for a claim that hangs."""
        self._fields |= fields
        self.hurry.send()

    def now(self) -> Demand:
        return Demand(**self._fields, changed=self.changed, hurry=self.hurry, again=self.now)


@pytest.fixture
def desk(server: ScriptedServer) -> Desk:
    desk = Desk()
    server.on(REGISTER, named("wait"))
    server.on(CLAIM, desk)
    return desk


def named(*words: str, lease_sec: float = 300) -> Reply:
    return answer({"capabilities": list(words), "lease_sec": lease_sec})


def bodies(server: ScriptedServer) -> list[dict[str, Any]]:
    return [request.json() for request in server.asked(CLAIM)]


@contextlib.asynccontextmanager
async def claiming(site: Any, need: Need) -> Any:
    job = asyncio.create_task(site.client.claim(need.now()))
    try:
        yield job
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


async def brought_one(server: ScriptedServer, desk: Desk, job: "asyncio.Task[Claim]") -> None:
    """The first claim is answered with a task."""
    await server.wait_for(CLAIM)
    desk.give("t1")
    await job


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def names(claim: Claim) -> list[str]:
    return [each.id for each in claim.tasks]


async def test_a_claim_waits_at_the_server_and_brings_what_comes(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    free = Free(
        slots=2, devices=(Device(uuid="u", name="NVIDIA H100", memory=80),), cpus=7.5, memory=1024
    )
    async with opened(wait=30) as site, claiming(site, Need(3, free=free)) as job:
        await server.wait_for(CLAIM)
        assert not job.done()
        desk.give("t1")
        claim = await job
    assert names(claim) == ["t1"]
    assert dict(claim.facts) == {"claim_no": "1"}
    assert claim.ask_again == 0
    assert bodies(server) == [
        {
            "agent_id": "agent-1",
            "machine_id": "machine-1",
            "limit": 3,
            "request_id": "stream-1:1",
            "wait_sec": 30,
            "free": {
                "slots": 2,
                "resources": {
                    "gpus": [{"name": "NVIDIA H100", "memory": 80}],
                    "cpus": 7.5,
                    "memory": 1024,
                },
                "urgent_at_most": None,
            },
        }
    ]


async def test_another_demand_is_told_by_the_same_number_and_the_same_one_is_not(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    need = Need(0, idle=0, urgent_at_most=4)
    async with opened() as site, claiming(site, need) as job:
        await server.wait_for(CLAIM)
        need.changed.send()  # and nothing is another
        need.set(2)
        await server.wait_for(CLAIM, 2)
        await until(desk.held[0][1].done)
        desk.give("t1")
        assert names(await job) == ["t1"]
    first, second = bodies(server)
    assert (first["limit"], second["limit"]) == (0, 2)
    assert first["request_id"] == second["request_id"] == "stream-1:1"
    assert (first["free"]["urgent_at_most"], second["free"]["urgent_at_most"]) == (4, None)


@pytest.mark.parametrize(("words", "limit"), [(("wait",), 1), ((), 3)])
async def test_only_where_no_claim_can_wait_is_asked_for_what_stands_by(
    opened: Any, server: ScriptedServer, words: tuple[str, ...], limit: int
) -> None:
    server.on(REGISTER, named(*words))
    server.on(CLAIM, answer({"tasks": []}))
    async with opened() as site:
        claim = await site.client.claim(Demand(slots=3, standby=2))
    assert bodies(server)[0]["limit"] == limit
    assert claim.takes_back == bool(words)


async def test_a_change_that_came_before_the_claim_is_not_missed(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    need = Need(0)
    stale = need.now()
    need.set(5)
    async with opened() as site:
        job = asyncio.create_task(site.client.claim(stale))
        await brought_one(server, desk, job)
    assert [body["limit"] for body in bodies(server)] == [5]


async def test_tasks_that_come_by_the_claim_that_was_ended_are_not_lost(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    """They were granted at the very moment at which the demand changed."""
    need = Need(1)
    async with opened() as site, claiming(site, need) as job:
        await server.wait_for(CLAIM)
        desk.ends_with = answer({"tasks": [task("t1")]})
        need.set(2)
        await server.wait_for(CLAIM, 2)
        desk.give("t1")  # the same once more, and then the number is settled
        claim = await job
        assert names(claim) == ["t1"]
        assert dict(claim.facts) == {"claim_no": "1"}


async def test_a_number_rises_past_no_call_that_may_still_bring_tasks(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    """Whoever is killed now asks by the number of what is still under way."""
    need = Need(1)
    async with opened() as site, claiming(site, need) as job:
        await server.wait_for(CLAIM)
        desk.ends_with = answer({"tasks": [task("t1")]})
        need.set(2)
        claim = await job
        assert (names(claim), dict(claim.facts)) == (["t1"], {})
        site.agent.save(claim.tasks, claim.facts)
        need.set(3)
        again = asyncio.create_task(site.client.claim(need.now()))
        await server.wait_for(CLAIM, 3)
        desk.give("t2")
        claim = await again
        assert names(claim) == ["t1", "t2"]
        assert dict(claim.facts) == {"claim_no": "1"}
    assert {body["request_id"] for body in bodies(server)} == {"stream-1:1"}


async def test_an_answer_to_an_earlier_number_settles_no_later_one(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    """Else what was granted to the later one would be asked for by nobody after a kill."""
    need = Need(1)
    async with opened() as site, claiming(site, need) as job:
        await server.wait_for(CLAIM)
        site.agent.facts["claim_no"] = "1"
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        site.client._claimer._hanging._tell(Question(1, 1, {}, 30))
        await server.wait_for(CLAIM, 2)
        early = desk.held[-1][1]
        again = asyncio.create_task(site.client.claim(need.now()))
        await server.wait_for(CLAIM, 3)
        early.set_result(answer({"tasks": [task("t1")]}))
        claim = await again
        assert (names(claim), dict(claim.facts)) == (["t1"], {})
        site.agent.save(claim.tasks, claim.facts)
        desk.give("t2")
        claim = await site.client.claim(need.now())
        assert (names(claim), dict(claim.facts)) == (["t2"], {"claim_no": "2"})


async def test_an_answer_to_an_earlier_claim_ends_no_later_one(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    need = Need(1)
    async with opened() as site, claiming(site, need) as job:
        for slots in (2, 3, 4):
            await server.wait_for(CLAIM, slots - 1)
            need.set(slots)
        await server.wait_for(CLAIM, 4)
        await until(lambda: all(answered.done() for _, answered in desk.held[:3]))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not job.done()
        desk.give("t1")
        assert names(await job) == ["t1"]


async def test_an_agent_that_stops_ends_its_wait_and_keeps_what_comes(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    async with opened(wait=60) as site, claiming(site, Need(1)) as job:
        await server.wait_for(CLAIM)
        desk.ends_with = answer({"tasks": [task("t1")]})
        site.agent.stopping.set()
        claim = await job
        assert names(claim) == ["t1"]
        assert dict(claim.facts) == {"claim_no": "1"}
    last = bodies(server)[-1]
    assert (last["limit"], last["wait_sec"], last["request_id"]) == (0, 0, "stream-1:1")


async def test_an_agent_that_stops_waits_for_no_server_that_is_away(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    async with opened(wait=60) as site, claiming(site, Need(1)) as job:
        await server.wait_for(CLAIM)
        site.agent.stopping.set()
        await server.stop()
        assert (await job).tasks == ()


async def test_an_agent_that_leaves_at_once_leaves_nothing_under_way(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    async with opened() as site, claiming(site, Need(1)) as job:
        await server.wait_for(CLAIM)
        before = asyncio.all_tasks()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert not [each for each in asyncio.all_tasks() & before if "claim" in each.get_name()]


async def test_an_outage_while_a_claim_waits_is_one(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    async with opened() as site, claiming(site, Need(1)) as job:
        await server.wait_for(CLAIM)
        await server.stop()
        with pytest.raises(Unreachable):
            await job


async def test_a_wait_in_vain_is_followed_by_the_next_at_once(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    clock = TurnedClock()
    async with opened(clock=clock) as site, claiming(site, Need(1)) as job:
        await server.wait_for(CLAIM)
        await clock.advance(30)
        desk.give()
        claim = await job
    assert (claim.tasks, claim.ask_again) == ((), 0)


async def test_a_server_that_does_not_let_it_wait_is_asked_by_the_interval(
    opened: Any, server: ScriptedServer
) -> None:
    server.on(REGISTER, named("wait"))
    server.on(CLAIM, NOTHING)
    async with opened(poll_interval=100) as site:
        claim = await site.client.claim(Need(1).now())
    assert claim.tasks == ()
    assert 90 <= claim.ask_again <= 110
    assert len(server.asked(CLAIM)) == 1


async def test_the_server_has_as_long_as_the_wait_beside_the_timeout(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    async with opened(wait=1, timeout=0.2) as site, claiming(site, Need(1)) as job:
        await server.wait_for(CLAIM)
        await asyncio.sleep(0.4)  # twice the timeout
        desk.give("t1")
        assert names(await job) == ["t1"]


@pytest.mark.parametrize(
    ("lease_sec", "setting", "wait"), [(300, 60, 60), (30, 60, 10), (300, 7.9, 7)]
)
async def test_a_claim_waits_for_a_third_of_the_lease_at_most(
    opened: Any, server: ScriptedServer, desk: Desk, lease_sec: int, setting: float, wait: int
) -> None:
    """The lease of what it brings counts from when it was sent."""
    server.on(REGISTER, named("wait", lease_sec=lease_sec))
    async with opened(wait=setting) as site, claiming(site, Need(1)):
        await server.wait_for(CLAIM)
    assert bodies(server)[0]["wait_sec"] == wait


@pytest.mark.parametrize(
    ("reply", "settings", "fields"),
    [
        (NOT_FOUND, {}, set()),
        (answer({"status": "active"}), {}, set()),
        (named(), {}, {"free"}),
        (named("wait"), {"wait": 0}, {"free"}),
        (named("wait", lease_sec=2), {}, {"free"}),
    ],
)
async def test_where_no_claim_waits_none_says_so_and_a_full_agent_asks_nothing(
    opened: Any, server: ScriptedServer, reply: Reply, settings: Any, fields: set[str]
) -> None:
    server.on(REGISTER, reply)
    server.on(CLAIM, NOTHING)
    async with opened(**settings) as site:
        await site.client.claim(Need(1).now())
        assert (await site.client.claim(Need(0).now())).tasks == ()
    (body,) = bodies(server)
    assert set(body) - {"agent_id", "machine_id", "limit", "request_id"} == fields


@pytest.mark.parametrize(("words", "limit"), [(("wait",), 10), (("wait", "events"), 200)])
async def test_more_is_claimed_at_once_where_renewals_are_batched(
    opened: Any, server: ScriptedServer, desk: Desk, words: tuple[str, ...], limit: int
) -> None:
    server.on(REGISTER, named(*words))
    async with opened(batch_size=10) as site, claiming(site, Need(220)):
        await server.wait_for(CLAIM)
    assert bodies(server)[0]["limit"] == limit


async def test_claims_that_only_fill_up_what_is_had_ready_gather(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    clock = TurnedClock()
    need = Need(1)
    async with opened(clock=clock) as site, claiming(site, need) as job:
        await brought_one(server, desk, job)
        need.set(1, idle=0)
        async with claiming(site, need):
            await clock.until_sleeping(4)
            need.set(7, idle=0)
            await clock.advance(GATHER / 2)
            assert len(server.asked(CLAIM)) == 1
            await clock.advance(GATHER / 2)
            await server.wait_for(CLAIM, 2)
        assert bodies(server)[1]["limit"] == 7
        need.set(1, idle=0)
        async with claiming(site, need):
            await clock.until_sleeping(4)
            need.set(2, idle=1)  # a slot is idle: now every moment counts
            await server.wait_for(CLAIM, 3)
        assert bodies(server)[2]["limit"] == 2


@pytest.mark.parametrize(
    ("fields", "left"), [({"short": True}, GATHER_SHORT), ({"free": Free(slots=1)}, 0.0)]
)
async def test_claims_gather_no_longer_than_what_is_had_ready_lasts(
    opened: Any, server: ScriptedServer, desk: Desk, fields: dict[str, Any], left: float
) -> None:
    clock = TurnedClock()
    need = Need(1)
    async with opened(clock=clock) as site, claiming(site, need) as job:
        await brought_one(server, desk, job)
        need.set(3, idle=0)
        async with claiming(site, need):
            await clock.until_sleeping(4)
            need.hurries(**fields)
            if left:
                await clock.until_sleeping(4)
                await clock.advance(left / 2)
                assert len(server.asked(CLAIM)) == 1
                await clock.advance(left / 2)
            await server.wait_for(CLAIM, 2)
        assert bodies(server)[1]["limit"] == 3


async def test_a_claim_that_hangs_is_not_asked_anew_because_the_agent_is_in_a_hurry(
    opened: Any, server: ScriptedServer, desk: Desk
) -> None:
    need = Need(2)
    async with opened() as site, claiming(site, need) as job:
        await server.wait_for(CLAIM)
        need.hurries(short=True)
        desk.give("t1")
        assert len((await job).tasks) == 1
    assert len(server.asked(CLAIM)) == 1
