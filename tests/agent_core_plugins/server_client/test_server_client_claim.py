"""Claims: numbered, repeatable, never two at once."""

import asyncio
from typing import Any

import pytest

from agent_core import Claim, Demand, Event, EventKind, Instant, Lease, Task, Unreachable
from agent_core.testing.clock import TurnedClock
from agent_core.testing.http_server import NOT_FOUND, Reply, Request, ScriptedServer, answer

CLAIM = "/api/v1/agent/tasks/claim"
REGISTER = "/api/v1/agent/register"


def task(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "attempt_id": f"{name}-1", "command": "true", **fields}


def ids(server: ScriptedServer) -> list[str]:
    return [request.json()["request_id"] for request in server.asked(CLAIM)]


def limits(server: ScriptedServer) -> list[int]:
    return [request.json()["limit"] for request in server.asked(CLAIM)]


async def test_a_claim_asks_for_the_free_slots_at_most_a_batch(opened: Any) -> None:
    async with opened(batch_size=3) as site:
        site.server.on(CLAIM, answer({"tasks": None}))
        for slots in (1, 3, 7):
            await site.client.claim(Demand(slots=slots))
        assert limits(site.server) == [1, 3, 3]
        body = site.server.asked(CLAIM)[0].json()
    assert body["agent_id"] == "agent-1"
    assert body["machine_id"] == "machine-1"


async def test_an_agent_without_room_asks_for_nothing(opened: Any) -> None:
    async with opened() as site:
        claim = await site.client.claim(Demand(slots=0))
        assert claim.tasks == ()
        assert claim.ask_again > 0
        assert site.server.asked(CLAIM) == []


async def test_the_number_rises_only_when_what_it_brought_was_saved(opened: Any) -> None:
    async with opened() as site:
        site.server.on(CLAIM, answer({"tasks": [task("t1")]}))
        first = await site.client.claim(Demand(slots=1))
        again = await site.client.claim(Demand(slots=1))  # the agent died before it saved
        assert dict(first.facts) == dict(again.facts) == {"claim_no": "1"}
        site.agent.save(again.tasks, again.facts)
        third = await site.client.claim(Demand(slots=1))
        assert dict(third.facts) == {"claim_no": "2"}
        assert ids(site.server) == ["stream-1:1", "stream-1:1", "stream-1:2"]


async def test_a_restarted_agent_goes_on_with_the_number_after_the_saved_one(opened: Any) -> None:
    async with opened() as site:
        site.agent.facts["claim_no"] = "41"
        site.server.on(CLAIM, answer({"tasks": [task("t1")]}))
        claim = await site.client.claim(Demand(slots=1))
        assert ids(site.server) == ["stream-1:42"]
        assert dict(claim.facts) == {"claim_no": "42"}


async def test_an_answer_that_got_lost_is_asked_for_by_the_same_number(opened: Any) -> None:
    async with opened() as site:
        site.server.on(CLAIM, Reply(body=b"{", close=True), answer({"tasks": [task("t1")]}))
        with pytest.raises(Unreachable):
            await site.client.claim(Demand(slots=1))
        claim = await site.client.claim(Demand(slots=1))
        assert [each.id for each in claim.tasks] == ["t1"]
        assert ids(site.server) == ["stream-1:1", "stream-1:1"]


async def test_a_full_answer_is_followed_at_once_and_a_short_one_after_the_interval(
    opened: Any,
) -> None:
    async with opened(poll_interval=100) as site:
        site.server.on(CLAIM, answer({"tasks": [task("t1"), task("t2")]}))
        assert (await site.client.claim(Demand(slots=2))).ask_again == 0
        pauses = {(await site.client.claim(Demand(slots=3))).ask_again for _ in range(20)}
        site.server.on(CLAIM, answer({"tasks": []}))
        pauses |= {(await site.client.claim(Demand(slots=3))).ask_again for _ in range(20)}
    assert all(90 <= pause <= 110 for pause in pauses)
    assert len(pauses) > 10  # jittered: a fleet must not ask in step


async def test_a_lease_counts_from_when_the_request_was_sent(opened: Any) -> None:
    gate = asyncio.Event()
    async with opened() as site:
        site.server.on(REGISTER, answer({"capabilities": [], "lease_sec": 120}))
        site.server.on(CLAIM, Reply(body=answer({"tasks": [task("t1")]}).body, gate=gate))
        before = site.clock.boottime()
        claiming = asyncio.create_task(site.client.claim(Demand(slots=1)))
        await site.server.wait_for(CLAIM)
        arrived = site.clock.boottime()
        gate.set()
        claim: Claim = await claiming
        lease = claim.tasks[0].lease
    assert lease is not None
    assert before + 120 <= lease.until.boottime <= arrived + 120


@pytest.mark.parametrize(
    ("reply", "lease_sec"),
    [
        (NOT_FOUND, 300),
        (answer({"status": "active", "machine_id": "m"}), 300),
        (answer({"lease_sec": "soon"}), 300),
        (answer({"lease_sec": 0}), 300),
        (answer({"lease_sec": True}), 300),
        (answer([]), 300),
        (answer({"lease_sec": 60}), 60),
    ],
)
async def test_the_lease_is_what_register_told_else_300_seconds(
    opened: Any, reply: Reply, lease_sec: int
) -> None:
    async with opened() as site:
        site.server.on(REGISTER, reply)
        site.server.on(CLAIM, answer({"tasks": [task("t1")]}))
        claim = await site.client.claim(Demand(slots=1))
        lease = claim.tasks[0].lease
        assert lease is not None
        left = -lease.until.age(site.clock)
    assert lease_sec - 10 < left <= lease_sec


async def test_while_renewals_are_in_time_no_claim_looks_at_them(opened: Any) -> None:
    """There may be hundreds, and twenty claims a second."""
    clock = TurnedClock()
    async with opened(clock=clock) as site:
        site.server.on(CLAIM, answer({"tasks": []}))
        await clock.until_sleeping(3)
        looked = []
        held = site.agent.held
        site.agent.held = lambda source: looked.append(source) or held(source)
        await site.client.claim(Demand(slots=1))
        assert looked == []


async def test_an_answer_that_dawdled_is_renewed_before_the_next_claim(opened: Any) -> None:
    clock = TurnedClock()
    gate = asyncio.Event()
    renew = "/api/v1/agent/tasks/*/lease/renew"
    async with opened(clock=clock, renew_interval=3600) as site:
        body = answer({"tasks": [task("t1")]}).body
        site.server.on(CLAIM, Reply(body=body, gate=gate), answer({"tasks": []}))
        site.server.on(renew, answer({"lease_sec": 300}))
        await clock.until_sleeping(3)
        claiming = asyncio.create_task(site.client.claim(Demand(slots=1)))
        await site.server.wait_for(CLAIM)
        await clock.advance(250)
        gate.set()
        claim = await claiming
        site.agent.save(claim.tasks, claim.facts)
        await site.client.claim(Demand(slots=1))
        assert len(site.server.asked(renew)) == 1


async def test_two_claims_are_never_in_flight(opened: Any) -> None:
    gate = asyncio.Event()
    async with opened() as site:
        site.server.on(CLAIM, Reply(body=answer({"tasks": []}).body, gate=gate))
        both = [asyncio.create_task(site.client.claim(Demand(slots=1))) for _ in range(2)]
        await site.server.wait_for(CLAIM)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(site.server.asked(CLAIM)) == 1
        gate.set()
        await asyncio.gather(*both)
        assert len(site.server.asked(CLAIM)) == 2


async def test_what_is_held_under_a_lease_that_is_over_is_renewed_before_more_is_claimed(
    opened: Any, server: ScriptedServer
) -> None:
    """The server was away for long: asked for work, it would grant the very runs that go on."""
    renew = "/api/v1/agent/tasks/*/lease/renew"
    clock = TurnedClock()
    gate = asyncio.Event()
    server.on(CLAIM, answer({"tasks": []}))
    server.on(renew, Reply(body=answer({}).body, gate=gate))
    async with opened(clock=clock) as site:
        await clock.until_sleeping(3)  # the loops of the plugin: none of them asks before long
        site.client._leases.overdue()  # its loop has not come to it
        for name, left in (("over", -1), ("nearly", 60), ("fresh", 200)):
            lease = Lease(until=Instant.now(clock).plus(left))
            site.agent.add(
                Task(id=name, attempt_id="a", command="x", source="server_client", lease=lease)
            )
        claiming = asyncio.create_task(site.client.claim(Demand(slots=1)))
        await server.wait_for(renew, 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.asked(CLAIM) == []
        gate.set()
        await claiming
        assert {key.task_id for key, _ in site.agent.renewals} == {"over", "nearly"}
        await site.client.claim(Demand(slots=1))
        assert len(server.asked(renew)) == 2, "what was renewed is not asked for again"
        assert len(server.asked(CLAIM)) == 2


async def test_nothing_is_claimed_while_a_lease_that_is_over_cannot_be_renewed(
    opened: Any, server: ScriptedServer
) -> None:
    clock = TurnedClock()
    server.on(CLAIM, answer({"tasks": []}))
    server.on("/api/v1/agent/tasks/*/lease/renew", Reply(status=502, body=b"<html>"))
    async with opened(clock=clock) as site:
        await clock.until_sleeping(3)
        site.client._leases.overdue()  # its loop has not come to it
        over = Lease(until=Instant.now(clock).plus(-1))
        site.agent.add(
            Task(id="t1", attempt_id="a", command="x", source="server_client", lease=over)
        )
        with pytest.raises(Unreachable, match="502"):
            await site.client.claim(Demand(slots=1))
        assert server.asked(CLAIM) == []


async def test_an_answer_of_nothing_but_rubbish_is_not_asked_for_again(opened: Any) -> None:
    async with opened() as site:
        site.server.on(CLAIM, answer({"tasks": [{"no": "id"}]}), answer({"tasks": None}))
        claim = await site.client.claim(Demand(slots=1))
        assert not claim.tasks
        assert claim.ask_again > 0
        await site.client.claim(Demand(slots=1))
        assert ids(site.server) == ["stream-1:1", "stream-1:2"]


@pytest.mark.parametrize(
    "reply",
    [
        answer(code=401, message="unauthorized"),
        answer(code=30012, message="token wrong", status=401),
        answer(code=30016, message="no route", status=404),
        answer(code=30013, message="full", status=503),
        answer(code=500, message="database down"),
        NOT_FOUND,
    ],
)
async def test_a_claim_that_is_refused_raises_and_brings_nothing(opened: Any, reply: Reply) -> None:
    async with opened() as site:
        site.server.on(CLAIM, reply)
        with pytest.raises(Unreachable):
            await site.client.claim(Demand(slots=1))


@pytest.mark.parametrize("data", [None, [], "text", 5, {}, {"tasks": None}])
async def test_an_answer_without_tasks_brings_none(opened: Any, data: object) -> None:
    async with opened() as site:
        site.server.on(CLAIM, answer(data))
        assert (await site.client.claim(Demand(slots=1))).tasks == ()


@pytest.mark.parametrize("tasks", [5, {"a": 1}, "none"])
async def test_tasks_that_are_no_list_are_an_outage_that_is_said(
    opened: Any, tasks: object
) -> None:
    async with opened() as site:
        site.server.on(CLAIM, answer({"tasks": tasks}))
        with pytest.raises(Unreachable, match="no list"):
            await site.client.claim(Demand(slots=1))


async def test_a_claim_waits_until_register_was_answered(opened: Any, server: Any) -> None:
    gate = asyncio.Event()
    body = answer({"capabilities": [], "lease_sec": 60}).body
    server.on(REGISTER, Reply(body=body, gate=gate))
    server.on(CLAIM, answer({"tasks": []}))
    async with opened() as site:
        claiming = asyncio.create_task(site.client.claim(Demand(slots=1)))
        await server.wait_for(REGISTER)
        assert server.asked(CLAIM) == []
        gate.set()
        await claiming
        assert len(server.asked(CLAIM)) == 1
        assert len(server.asked(REGISTER)) == 1


async def test_an_agent_that_stops_claims_no_more(opened: Any) -> None:
    async with opened() as site:
        site.agent.stopping.set()
        assert (await site.client.claim(Demand(slots=1))).tasks == ()
        assert site.server.asked(CLAIM) == []


async def test_without_a_server_a_claim_waits_for_the_agents_end_and_says_so_once(
    opened: Any,
) -> None:
    async with opened(url="") as site:
        claiming = asyncio.create_task(site.client.claim(Demand(slots=1)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not claiming.done()
        site.agent.stopping.set()
        assert (await claiming).tasks == ()
        assert len(site.said("info")) == 1
        with pytest.raises(Unreachable, match="no server is set"):
            await site.client.report([])


async def test_after_an_outage_results_are_told_before_new_work_is_asked_for(opened: Any) -> None:
    def only_once(_request: Request) -> Reply:
        return answer({"tasks": [task("t2")]})

    async with opened() as site:
        site.server.on(CLAIM, answer({"tasks": [task("t1")]}))
        claim = await site.client.claim(Demand(slots=1))
        site.agent.save(claim.tasks, claim.facts)
        await site.server.stop()
        with pytest.raises(Unreachable):
            await site.client.claim(Demand(slots=1))
        await site.server.start()
        site.server.on(CLAIM, only_once)
        kept = claim.tasks[0]
        site.agent.add(
            kept,
            Event(kind=EventKind.COMPLETE, key=kept.key, source="server_client", run_no=1, at=0),
        )
        waiting = await site.client.claim(Demand(slots=1))
        assert (waiting.tasks, waiting.ask_again) == ((), 1.0)
        site.agent.events.clear()
        after = await site.client.claim(Demand(slots=1))
        assert [each.id for each in after.tasks] == ["t2"]
        assert ids(site.server) == ["stream-1:1", "stream-1:2"]
