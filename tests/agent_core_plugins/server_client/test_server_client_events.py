"""Events in batches: what is sent, how it is split, and what each answer makes of it."""

import asyncio
import base64
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from agent_core import (
    Answer,
    Event,
    EventKind,
    Instant,
    Key,
    Lease,
    Outcome,
    Progress,
    Reason,
    Status,
    Task,
    Unreachable,
    Usage,
)
from agent_core.testing.clock import TurnedClock
from agent_core.testing.http_server import NOT_FOUND, Reply, Request, answer
from agent_core_plugins.server_client.courier import RIDE

API = "/api/v1/agent"
EVENTS, REGISTER, HEARTBEAT = f"{API}/events", f"{API}/register", f"{API}/heartbeat"
START, COMPLETE = f"{API}/tasks/*/start", f"{API}/tasks/*/complete"
SUCCESS = Outcome(reason=Reason.EXITED, exit_code=0)
Judging = Callable[[dict[str, Any]], int]


def named(*words: str, **limits: int) -> Reply:
    return answer({"capabilities": list(words), "lease_sec": 300, "limits": limits})


def event(kind: EventKind, task: str = "t1", *, seq: int = 1, **fields: Any) -> Event:
    given: dict[str, Any] = {"run_no": 1, "at": 1_700_000_000.5} | fields
    key = Key(task, f"{task}-1")
    return Event(kind=kind, key=key, source="server_client", seq=seq, **given)


def ends(count: int, **fields: Any) -> list[Event]:
    given = {"outcome": SUCCESS} | fields
    return [event(EventKind.COMPLETE, f"t{n}", seq=n, **given) for n in range(1, count + 1)]


def told(request: Request) -> list[dict[str, Any]]:
    return list(request.json()["events"])


def judging(judge: Judging = lambda _: 0, *, whole: Judging = lambda _: 0) -> Any:
    """A server that gives each event a code, or, over one of them, refuses the whole request."""

    def reply(request: Request) -> Reply:
        events = told(request)
        for each in events:
            if code := whole(each):
                return answer(code=code, message="not so", status=400)
        return answer({"results": [{"code": judge(each), "message": "a word"} for each in events]})

    return reply


def of(task: str, code: int) -> Judging:
    return lambda each: code if each.get("task_id") == task else 0


@pytest.fixture
def speaking(server: Any) -> Any:
    server.on(REGISTER, named("events"))
    server.on(EVENTS, judging())
    return server


def answers(receipts: Sequence[Any]) -> list[Answer]:
    return [receipt.answer for receipt in receipts]


async def test_a_tasks_whole_life_is_one_request(opened: Any, speaking: Any) -> None:
    failed = Outcome(
        reason=Reason.SIGNAL,
        exit_code=137,
        signal="SIGKILL",
        error="ended by SIGKILL",
        stdout="ü".encode(),
        stderr=b"\xff\0",
        dropped_stderr=None,
        usage=Usage(wall_s=1.5, user_s=1.0, system_s=0.25, max_rss_bytes=4096),
    )
    events = [
        event(EventKind.START, seq=3, started_at=1_700_000_000.25),
        event(EventKind.RUN, seq=4, outcome=failed, next_run_at=1_700_000_060.0),
        event(EventKind.START, seq=5, run_no=2, started_at=1_700_000_061.0),
        event(EventKind.COMPLETE, seq=6, run_no=2, outcome=SUCCESS),
    ]
    async with opened() as site:
        receipts = await site.client.report(events)
        assert [(each.seq, each.answer) for each in receipts] == [
            (seq, Answer.TAKEN) for seq in (3, 4, 5, 6)
        ]
        (request,) = speaking.asked(EVENTS)
        assert speaking.asked(f"{API}/tasks/*/*") == []
    body = request.json()
    assert {name: body[name] for name in ("agent_id", "machine_id", "stream")} == {
        "agent_id": "agent-1",
        "machine_id": "machine-1",
        "stream": "stream-1",
    }
    same = {"task_id": "t1", "attempt_id": "t1-1", "at": "2023-11-14T22:13:20.500Z"}
    assert body["events"] == [
        {"seq": 3, "kind": "start", "run_no": 1, "started_at": "2023-11-14T22:13:20.250Z", **same},
        {
            "seq": 4,
            "kind": "run",
            "run_no": 1,
            "exit_code": 137,
            "signal": "SIGKILL",
            "reason": "signal",
            "error": "ended by SIGKILL",
            "usage": {"wall_s": 1.5, "user_s": 1.0, "system_s": 0.25, "max_rss_bytes": 4096},
            "stdout": "ü",
            "stderr_base64": base64.b64encode(b"\xff\0").decode(),
            "truncated": {"stdout": 0, "stderr": None},
            "next_run_at": "2023-11-14T22:14:20.000Z",
            **same,
        },
        {"seq": 5, "kind": "start", "run_no": 2, "started_at": "2023-11-14T22:14:21.000Z", **same},
        {
            "seq": 6,
            "kind": "complete",
            "run_no": 2,
            "exit_code": 0,
            "reason": "exited",
            "status": "completed",
            **same,
        },
    ]


async def test_each_event_has_its_own_answer(opened: Any, speaking: Any) -> None:
    codes = {"t1": 0, "t2": 30001, "t3": 30005, "t4": 30013, "t5": 30002, "t6": 12345}
    speaking.on(EVENTS, judging(lambda each: codes[each["task_id"]]))
    async with opened() as site:
        receipts = await site.client.report(ends(6))
    assert answers(receipts) == [
        Answer.TAKEN,
        Answer.STALE,
        Answer.REFUSED,
        Answer.RETRY,
        Answer.STALE,
        Answer.RETRY,
    ]
    assert receipts[2].message == "a word"
    assert [each.seq for each in receipts] == [1, 2, 3, 4, 5, 6]


async def test_what_is_given_back_goes_by_its_own_call_beside_the_batch(
    opened: Any, speaking: Any
) -> None:
    release = f"{API}/tasks/*/release"
    speaking.on(release, answer())
    given = Outcome(reason=Reason.RELEASED, error="given back: the agent stops")
    events = [event(EventKind.RELEASE, "back", seq=1, outcome=given), *ends(2)]
    async with opened() as site:
        assert answers(await site.client.report(events)) == [Answer.TAKEN] * 3
    assert [each.path for each in speaking.asked(release)] == [f"{API}/tasks/back/release"]
    assert len(told(speaking.asked(EVENTS)[0])) == 2


async def test_a_batch_holds_no_more_than_the_server_said(opened: Any, server: Any) -> None:
    server.on(REGISTER, named("events", events=7, bytes=5000))
    server.on(EVENTS, judging())
    long = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"x" * 1500)
    async with opened() as site:
        assert answers(await site.client.report(ends(20))) == [Answer.TAKEN] * 20
        assert [len(told(request)) for request in server.asked(EVENTS)] == [7, 7, 6]
        assert answers(await site.client.report(ends(7, outcome=long))) == [Answer.TAKEN] * 7
    later = server.asked(EVENTS)[3:]
    assert [len(told(request)) for request in later] == [2, 2, 2, 1]
    assert all(len(request.body) <= 5000 for request in later)


@pytest.mark.parametrize(
    "output", [b"x" * 200_000, b"\x01" * 200_000, b"\xff" * 200_000, "é".encode() * 100_000]
)
async def test_an_output_that_no_batch_holds_is_cut(
    opened: Any, server: Any, output: bytes
) -> None:
    server.on(REGISTER, named("events", bytes=50_000))
    server.on(EVENTS, judging())
    outcome = Outcome(
        reason=Reason.EXITED, exit_code=0, stdout=b"<" + output + b">", dropped_stdout=10
    )
    async with opened() as site:
        assert answers(await site.client.report(ends(2, outcome=outcome))) == [Answer.TAKEN] * 2
    for request in server.asked(EVENTS):
        assert len(request.body) <= 50_000
        (each,) = told(request)
        kept = each.get("stdout", "").encode() or base64.b64decode(each["stdout_base64"])
        assert len(kept) > 5_000
        assert kept.startswith(b"<")
        assert kept.endswith(b">")
        dropped = each["truncated"]["stdout"]
        assert f"\n...[truncated, {dropped} bytes dropped]\n".encode() in kept
        assert dropped > 100_000


@pytest.mark.parametrize("code", [30015, 30005])
async def test_a_batch_that_is_refused_as_a_whole_is_halved_until_the_culprit_is_alone(
    opened: Any, speaking: Any, code: int
) -> None:
    speaking.on(EVENTS, judging(whole=of("t5", code)))
    speaking.on(COMPLETE, answer(code=30005, message="a bad field", status=400))
    async with opened() as site:
        receipts = await site.client.report(ends(16))
        assert answers(receipts) == [Answer.TAKEN] * 4 + [Answer.REFUSED] + [Answer.TAKEN] * 11
        assert receipts[4].message == "a bad field"
        assert [each.path for each in speaking.asked(COMPLETE)] == [f"{API}/tasks/t5/complete"]
        assert len(speaking.asked(EVENTS)) == 9  # two a level, and the first
        sizes = [len(told(request)) for request in speaking.asked(EVENTS)]
        assert sizes == [16, 8, 4, 4, 2, 1, 1, 2, 8]


async def test_what_only_the_batch_is_too_large_for_is_told_by_itself(
    opened: Any, speaking: Any
) -> None:
    """A proxy with a limit of its own answers in its own words."""

    def proxied(request: Request) -> Reply:
        if len(request.body) > 300_000:
            return Reply(status=413, body=b"<html>413 Request Entity Too Large</html>")
        return answer() if "complete" in request.path else judging()(request)

    speaking.on(EVENTS, proxied)
    speaking.on(COMPLETE, proxied)
    outcome = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"x" * 1_000_000)
    events = [*ends(3), event(EventKind.COMPLETE, "big", seq=4, outcome=outcome)]
    async with opened() as site:
        assert answers(await site.client.report(events)) == [Answer.TAKEN] * 4
    assert len(speaking.asked(COMPLETE)[-1].json()["stdout"]) > 50_000


async def test_a_server_that_fails_over_one_event_takes_the_others(
    opened: Any, speaking: Any
) -> None:
    speaking.on(EVENTS, judging(whole=of("t5", 30099)))
    speaking.on(COMPLETE, answer(code=30099, message="oops", status=500))
    async with opened() as site:
        receipts = await site.client.report(ends(16))
    assert answers(receipts) == [Answer.TAKEN] * 4 + [Answer.RETRY] + [Answer.TAKEN] * 11
    assert receipts[4].code == 30099


async def test_a_server_that_fails_over_everything_is_not_stormed(
    opened: Any, speaking: Any
) -> None:
    speaking.on(EVENTS, answer(code=30099, message="no database", status=500))
    async with opened() as site:
        with pytest.raises(Unreachable):
            await site.client.report(ends(90))
        assert len(speaking.asked(EVENTS)) <= 3
        assert speaking.asked(COMPLETE) == []


@pytest.mark.parametrize("seed", range(8))
async def test_whoever_is_to_blame_every_other_event_is_taken_once(
    opened: Any, server: Any, seed: int
) -> None:
    """Culprits of both kinds anywhere, in batches of any size."""
    rng = random.Random(seed)
    count = rng.choice([1, 2, 3, 17, 60])
    server.on(REGISTER, named("events", events=rng.choice([1, 5, 100])))
    names = [f"t{n}" for n in range(1, count + 1)]
    refused = set(rng.sample(names, min(count, rng.choice([0, 1, 4]))))
    sick = set(rng.sample(names, min(count, rng.choice([0, 1, 2])))) - refused
    codes = dict.fromkeys(refused, 30005) | dict.fromkeys(sick, 30099)
    taken: list[str] = []

    def reply(request: Request) -> Reply:
        tasks = [each["task_id"] for each in told(request)]
        for task in tasks:
            if task in codes:
                return answer(code=codes[task], message="not so", status=400)
        taken.extend(tasks)
        return answer({"results": [{"code": 0} for _ in tasks]})

    def single(request: Request) -> Reply:
        code = codes[request.path.split("/")[-2]]
        return answer(code=code, message="not so", status=400)

    server.on(EVENTS, reply)
    server.on(COMPLETE, single)
    async with opened() as site:
        if not set(names) - sick - refused and sick:
            return  # nobody could tell them from a server that is down
        try:
            receipts = await site.client.report(ends(count))
        except Unreachable:
            assert sick  # it looked as if it were: then they come again one by one
            return
        wanted = dict.fromkeys(names, Answer.TAKEN)
        wanted |= dict.fromkeys(refused, Answer.REFUSED) | dict.fromkeys(sick, Answer.RETRY)
        assert answers(receipts) == [wanted[task] for task in names]
        assert sorted(taken) == sorted(set(names) - refused - sick)
        assert len(server.asked(EVENTS)) <= count + 2 * 7 * (len(refused) + len(sick)) + 1


@pytest.mark.parametrize(
    "reply",
    [
        answer(code=30012, message="token", status=401),
        answer(code=30013, message="full", status=503),
        answer({"results": [{"code": 0}]}),
        answer({"results": None}),
        answer(),
        Reply(status=502, body=b"<html>"),
    ],
)
async def test_an_answer_that_says_nothing_of_the_events_is_an_outage(
    opened: Any, speaking: Any, reply: Reply
) -> None:
    speaking.on(EVENTS, reply)
    async with opened() as site:
        with pytest.raises(Unreachable):
            await site.client.report(ends(3))
        assert len(speaking.asked(EVENTS)) == 1


async def test_a_result_that_is_none_leaves_that_event_alone_waiting(
    opened: Any, speaking: Any
) -> None:
    results: list[Any] = [{"code": 0}, None, {"code": "0"}, {"code": True}]
    speaking.on(EVENTS, answer({"results": results}))
    async with opened() as site:
        receipts = await site.client.report(ends(4))
    assert answers(receipts) == [Answer.TAKEN] + [Answer.RETRY] * 3


async def test_an_outage_in_the_middle_keeps_the_receipts_before_it(
    opened: Any, server: Any
) -> None:
    server.on(REGISTER, named("events", events=2))
    server.on(EVENTS, judging(), Reply(status=502, body=b""))
    async with opened() as site:
        receipts = await site.client.report(ends(5))
    assert answers(receipts) == [Answer.TAKEN] * 2 + [Answer.RETRY] * 3


async def test_a_word_without_its_route_is_done_without_at_once_and_asked_for_again(
    opened: Any, speaking: Any
) -> None:
    clock = TurnedClock()
    speaking.on(EVENTS, NOT_FOUND)
    speaking.on(COMPLETE, answer())
    async with opened(clock=clock) as site:
        await speaking.wait_for(HEARTBEAT)
        assert answers(await site.client.report(ends(2))) == [Answer.TAKEN] * 2
        assert len(speaking.asked(COMPLETE)) == 2
        assert answers(await site.client.report(ends(2))) == [Answer.TAKEN] * 2
        assert len(speaking.asked(EVENTS)) == 1
        for times in (2, 3):
            if times == 3:
                speaking.on(EVENTS, judging())
            await clock.until_sleeping(3)
            await clock.advance(30)
            await speaking.wait_for(REGISTER, times)
            await speaking.wait_for(HEARTBEAT, times)
            await site.client.report(ends(2))
            assert len(speaking.asked(EVENTS)) == times
        assert len(speaking.asked(COMPLETE)) == 6
        assert len(site.said("warning")) == 1


async def test_a_word_may_go_and_come_with_each_register(opened: Any, server: Any) -> None:
    server.on(REGISTER, named("events"), named(), named("events"))
    server.on(EVENTS, judging())
    server.on(COMPLETE, answer())
    async with opened() as site:
        for _ in range(3):
            await site.client.report(ends(1))
            await server.stop()
            with pytest.raises(Unreachable):
                await site.client.report(ends(1))
            await server.start()
    paths = [
        each.path for each in server.requests if "complete" in each.path or "events" in each.path
    ]
    assert paths == [EVENTS, f"{API}/tasks/t1/complete", EVENTS]


async def test_a_start_after_the_leases_end_is_renewed_before_it_comes_again(
    opened: Any, speaking: Any
) -> None:
    renew = f"{API}/tasks/*/lease/renew"
    speaking.on(renew, answer({"lease_sec": 60}))
    speaking.on(EVENTS, judging(lambda _: 30003))
    async with opened() as site:
        (receipt,) = await site.client.report([event(EventKind.START)])
        assert receipt.answer is Answer.RETRY
        assert [key.task_id for key, _ in site.agent.renewals] == ["t1"]


# --- what rides along


def running(name: str, **fields: Any) -> Task:
    given = {"status": Status.RUNNING, "run_no": 1, "timeout": 3600.0} | fields
    return Task(id=name, attempt_id=f"{name}-1", command="x", source="server_client", **given)


async def test_everything_held_is_renewed_in_few_requests_and_counts_from_their_sending(
    opened: Any, speaking: Any
) -> None:
    clock = TurnedClock()
    gate = asyncio.Event()

    def renewed(request: Request) -> Reply:
        results = [{"code": 0, "lease_sec": 90} for _ in told(request)]
        return Reply(body=answer({"results": results}).body, gate=gate)

    speaking.on(EVENTS, renewed)
    async with opened(clock=clock) as site:
        for number in range(250):
            site.agent.add(running(f"t{number}"))
        await clock.until_sleeping(4)  # heartbeat, progress, and the renewals wait for a lift
        sent = Instant.now(clock).plus(RIDE)
        await clock.advance(RIDE)
        await speaking.wait_for(EVENTS, 3)
        await clock.advance(10)
        gate.set()
        await asyncio.wait_for(_until(lambda: len(site.agent.renewals) == 250), 10)
        assert {lease for _, lease in site.agent.renewals} == {Lease(until=sent.plus(90))}
        assert speaking.asked(f"{API}/tasks/*/lease/renew") == []
        assert all(
            set(each) == {"seq", "kind", "task_id", "attempt_id", "at", "extend_sec"}
            and (each["seq"], each["kind"]) == (0, "renew")
            for request in speaking.asked(EVENTS)
            for each in told(request)
        )


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def test_a_renewal_that_is_refused_ends_its_run_alone(opened: Any, speaking: Any) -> None:
    codes = {"t1": 0, "t2": 30001, "t3": 30002}
    speaking.on(EVENTS, judging(lambda each: codes[each["task_id"]]))
    async with opened() as site:
        await site.client.report([])  # registered by now
        for name in codes:
            site.agent.add(running(name))
        await site.client._leases.renew_all(site.agent)
        assert sorted((key.task_id, code) for key, code, _ in site.agent.cancelled) == [
            ("t2", 30001),
            ("t3", 30002),
        ]
        assert [key.task_id for key, _ in site.agent.renewals] == ["t1"]


async def test_renewals_and_progress_ride_along_with_a_report(opened: Any, speaking: Any) -> None:
    clock = TurnedClock()
    async with opened(clock=clock) as site:
        task = site.agent.add(running("t9"))
        site.agent.progresses[task.key] = Progress(percent=140, message="epoch\0 3")
        await clock.until_sleeping(3)  # nobody has given the renewal a lift yet
        await clock.advance(RIDE / 2)
        assert speaking.asked(EVENTS) == []
        assert answers(await site.client.report(ends(2))) == [Answer.TAKEN] * 2
        (request,) = speaking.asked(EVENTS)
        assert [each["kind"] for each in told(request)] == ["complete", "complete", "renew"]
        await _until(lambda: len(site.agent.renewals) == 1)
        await clock.until_sleeping(3)
        await clock.advance(2 - RIDE / 2)  # and the progress sets out
        await site.client.report(ends(1))
        kinds = [(each["kind"], each.get("percent")) for each in told(speaking.asked(EVENTS)[1])]
        assert kinds == [("complete", None), ("progress", 100)]
        assert told(speaking.asked(EVENTS)[1])[1]["message"] == "epoch\N{REPLACEMENT CHARACTER} 3"
        await clock.until_sleeping(3)
        await clock.advance(10)
        assert len(speaking.asked(EVENTS)) == 2  # nothing new to tell


async def test_what_rides_along_is_to_blame_for_nothing(opened: Any, speaking: Any) -> None:
    clock = TurnedClock()
    speaking.on(EVENTS, judging(whole=lambda each: 30005 if each["kind"] == "renew" else 0))
    async with opened(clock=clock) as site:
        site.agent.add(running("t9"))
        await clock.until_sleeping(3)
        assert answers(await site.client.report(ends(2))) == [Answer.TAKEN] * 2
        assert [len(told(request)) for request in speaking.asked(EVENTS)] == [3, 2]
        assert site.agent.cancelled == []


async def test_progress_is_told_when_it_changed_and_again_after_an_outage(
    opened: Any, speaking: Any
) -> None:
    async with opened() as site:
        task = site.agent.add(running("t1"))
        site.agent.progresses[task.key] = Progress(percent=None, message="é" * 600)
        tell = site.client._progress.tell_all
        await site.client.report([])  # registered by now
        for reply in (Reply(status=502, body=b""), judging(), judging()):
            speaking.on(EVENTS, reply)
            await tell(site.agent)
            await site.client.report([])  # and again, after the outage
        sent = [each for request in speaking.asked(EVENTS) for each in told(request)]
    told_of = [each for each in sent if each["kind"] == "progress"]
    assert [each["percent"] for each in told_of] == [None] * 2
    assert [each["message"] for each in told_of] == ["é" * 500] * 2
