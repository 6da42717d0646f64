"""Register, heartbeat, renew and progress: how often, with what, and through outages."""

import asyncio
from typing import Any

import pytest

from agent_core import (
    Event,
    EventKind,
    Gpu,
    Instant,
    Inventory,
    Key,
    Lease,
    Progress,
    Status,
    Task,
    Unreachable,
)
from agent_core.testing.clock import TurnedClock
from agent_core.testing.http_server import NOT_FOUND, Reply, answer
from agent_core_plugins.server_client.machine import metrics, own_address

API = "/api/v1/agent"
REGISTER, HEARTBEAT = f"{API}/register", f"{API}/heartbeat"
RENEW, PROGRESS = f"{API}/tasks/*/lease/renew", f"{API}/tasks/*/progress"
LOOPS = 3  # heartbeat, renew, progress: this many sleep when nothing is to be done
UNREGISTERED = 2  # of them, as long as register was never answered


def running(name: str = "t1", **fields: Any) -> Task:
    given = {"status": Status.RUNNING, "run_no": 1, "timeout": 3600.0} | fields
    return Task(id=name, attempt_id=f"{name}-1", command="x", source="server_client", **given)


async def test_an_agent_says_who_it_is_and_that_it_lives(opened: Any, server: Any) -> None:
    clock = TurnedClock()
    async with opened(clock=clock, heartbeat_interval=30) as site:
        site.agent.machine = Inventory(cpu_percent=12.34)
        await clock.until_sleeping(LOOPS)
        (request,) = server.asked(REGISTER)
        body = request.json()
        assert (body["agent_id"], body["machine_id"]) == ("agent-1", "machine-1")
        assert body["max_workers"] == 2
        assert body["capabilities"] == ["events", "wait", "commands", "logs"]
        assert (body["labels"], body["executors"]) == ({}, ["subprocess_executor"])
        assert body["gpus"] == []
        assert body["ip_address"] == "127.0.0.1"
        assert body["hostname"]
        assert body["version"]
        assert server.asked(HEARTBEAT)[0].json() == {
            "agent_id": "agent-1",
            "machine_id": "machine-1",
            "metrics": {"cpu_usage_percent": 12.3},
        }
        for beats in (2, 3):
            await clock.advance(30)
            await server.wait_for(HEARTBEAT, beats)
            await clock.until_sleeping(LOOPS)
        await clock.advance(29)
        assert len(server.asked(HEARTBEAT)) == 3
        assert len(server.asked(REGISTER)) == 1


async def test_a_device_that_comes_or_goes_is_told_by_another_register(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    async with opened(clock=clock, heartbeat_interval=30) as site:
        gpu = Gpu(index=0, uuid="GPU-0", name="Tesla T4", memory_total=2**34)
        await clock.until_sleeping(LOOPS)
        for beats, gpus in ((2, (gpu,)), (3, (gpu,)), (4, ())):
            site.agent.machine = Inventory(cpu_percent=50.0 + beats, gpus=gpus)
            await clock.advance(30)
            await server.wait_for(HEARTBEAT, beats)
            await clock.until_sleeping(LOOPS)
        told = [request.json()["gpus"] for request in server.asked(REGISTER)]
        assert told == [[], [{"uuid": "GPU-0", "name": "Tesla T4", "memory": 2**34}], []]


async def test_a_server_that_names_other_words_is_registered_with_anew(
    opened: Any, server: Any
) -> None:
    """It was started anew so quickly that nobody missed it."""
    clock = TurnedClock()
    said = [{"capabilities": ["wait"]}, {"capabilities": ["wait", "logs"]}]
    server.on(REGISTER, *map(answer, said))
    server.on(HEARTBEAT, *map(answer, [said[0], said[0], said[1]]))
    async with opened(clock=clock, heartbeat_interval=30):
        await clock.until_sleeping(LOOPS)
        for beats, registered in ((2, 1), (3, 2), (4, 2)):
            await clock.advance(30)
            await server.wait_for(HEARTBEAT, beats)
            await clock.until_sleeping(LOOPS)
            assert len(server.asked(REGISTER)) == registered


async def test_a_server_without_register_is_worked_with_all_the_same(
    opened: Any, server: Any
) -> None:
    server.on(REGISTER, NOT_FOUND)
    clock = TurnedClock()
    async with opened(clock=clock) as site:
        await clock.until_sleeping(LOOPS)
        await clock.advance(30)
        await server.wait_for(HEARTBEAT, 2)
        assert len(server.asked(REGISTER)) == 1  # learned once
        assert site.said("warning") == []


async def test_an_outage_and_its_end_are_said_once_and_then_the_agent_registers_anew(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    async with opened(clock=clock) as site:
        await clock.until_sleeping(LOOPS)
        await server.stop()
        for _ in range(5):
            with pytest.raises(Unreachable):
                await site.client.report([_start(1)])
        assert site.said("warning") == [
            "the server is unreachable, work goes on and it is asked again"
        ]
        assert "refused" in site.capture.entries[-1]["reason"]
        await server.start()
        server.on(f"{API}/tasks/*/start", answer())
        await site.client.report([_start(1)])
        await server.wait_for(HEARTBEAT, 2)  # at once, not after the interval
        assert site.said("info") == ["the server is back"]
        assert len(server.asked(REGISTER)) == 2
        assert len(site.said("warning")) == 1


async def test_while_the_server_is_away_it_is_asked_ever_more_seldom(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    server.on(REGISTER, Reply(status=502, body=b"<html>"))
    async with opened(clock=clock) as site:
        await clock.until_sleeping(UNREGISTERED)
        for _ in range(12):
            await clock.advance(60)
            await clock.until_sleeping(UNREGISTERED)
        assert 12 <= len(server.asked(REGISTER)) <= 120  # every second would be 1440
        assert len(site.said("warning")) == 1


async def test_a_refused_token_is_said_once_and_tasks_are_kept(opened: Any, server: Any) -> None:
    wrong = answer(code=30012, message="the token is wrong", status=401)
    for path in (REGISTER, HEARTBEAT, RENEW):
        server.on(path, wrong)
    clock = TurnedClock()
    async with opened(clock=clock) as site:
        site.agent.add(running())
        await clock.until_sleeping(UNREGISTERED)
        for _ in range(3):
            await clock.advance(60)
            await clock.until_sleeping(UNREGISTERED)
        assert len(site.said("error")) == 1
        assert "server_client.token" in site.said("error")[0]
        assert site.agent.cancelled == []
        for path in (REGISTER, HEARTBEAT, RENEW):
            server.on(path, answer({"lease_sec": 300}))
        await clock.advance(60)
        await server.wait_for(HEARTBEAT)
        assert site.said("info") == ["the server is back"]


async def test_what_is_held_is_renewed_at_once_and_then_by_the_interval(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    server.on(RENEW, answer({"renewed": True, "lease_sec": 90}))
    async with opened(clock=clock, renew_interval=60) as site:
        site.agent.add(running("t1"))
        site.agent.add(running("t2", status=Status.PENDING, run_no=0))
        site.agent.add(running("t3", status=Status.COMPLETED))
        await clock.until_sleeping(LOOPS)
        asked = [request.path.split("/")[-3] for request in server.asked(RENEW)]
        assert sorted(asked) == ["t1", "t2"]
        assert server.asked(RENEW)[0].json()["extend_sec"] == 300
        leases = {key.task_id: lease for key, lease in site.agent.renewals}
        assert leases["t1"] == Lease(until=Instant.now(clock).plus(90))
        await clock.advance(60)
        await server.wait_for(RENEW, 4)


async def test_a_short_lease_is_renewed_at_every_third_of_it(opened: Any, server: Any) -> None:
    clock = TurnedClock()
    server.on(REGISTER, answer({"capabilities": [], "lease_sec": 30}))
    server.on(RENEW, answer({"renewed": True}))
    async with opened(clock=clock, renew_interval=60) as site:
        site.agent.add(running())
        await clock.until_sleeping(LOOPS)
        await clock.advance(60)  # the first pause was chosen before register had answered
        await clock.until_sleeping(LOOPS)
        count = len(server.asked(RENEW))
        await clock.advance(10)
        await server.wait_for(RENEW, count + 1)
        assert site.agent.renewals[-1][1] == Lease(until=Instant.now(clock).plus(30))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (30001, "attempt lost: the server granted this task anew"),
        (30002, "cancelled on the server"),
        (30004, "attempt lost: the server knows no such task any more"),
    ],
)
async def test_a_renewal_that_is_refused_ends_the_run_once(
    opened: Any, server: Any, code: int, words: str
) -> None:
    clock = TurnedClock()
    server.on(RENEW, answer(code=code, message="no", status=409))
    async with opened(clock=clock) as site:
        site.agent.add(running())
        await clock.until_sleeping(LOOPS)
        await clock.advance(120)
        await clock.until_sleeping(LOOPS)
        assert site.agent.cancelled == [(Key("t1", "t1-1"), code, words)]
        assert len(server.asked(RENEW)) == 1


@pytest.mark.parametrize(
    "reply",
    [
        answer(code=30099, message="oops", status=500),
        answer(code=500, message="数据库错误"),
        answer(code=410, message="lease lost"),
        answer(code=409, message="conflict"),
        NOT_FOUND,
        Reply(status=502, body=b"<html>"),
        Reply(body=b""),
    ],
)
async def test_no_other_answer_to_a_renewal_ends_a_run(
    opened: Any, server: Any, reply: Reply
) -> None:
    clock = TurnedClock()
    server.on(RENEW, reply)
    async with opened(clock=clock) as site:
        site.agent.add(running())
        await clock.until_sleeping(LOOPS)
        await clock.advance(60)
        await server.wait_for(RENEW, 2)
        assert site.agent.cancelled == []
        assert site.agent.renewals == []


async def test_one_renewal_without_an_answer_does_not_hold_up_the_others(
    opened: Any, server: Any
) -> None:
    def choosy(request: Any) -> Reply:
        return Reply(body=b"") if "/t1/" in request.path else answer({})

    clock = TurnedClock()
    server.on(RENEW, choosy)
    async with opened(clock=clock) as site:
        for number in range(1, 13):
            site.agent.add(running(f"t{number}"))
        await clock.until_sleeping(LOOPS)
        assert {key.task_id for key, _ in site.agent.renewals} == {f"t{n}" for n in range(2, 13)}


async def test_a_renewal_that_hangs_holds_up_no_later_round_and_is_not_asked_twice(
    opened: Any, server: Any
) -> None:
    gate = asyncio.Event()

    def choosy(request: Any) -> Reply:
        return Reply(body=answer({}).body, gate=gate) if "/t1/" in request.path else answer({})

    server.on(REGISTER, answer({"capabilities": [], "lease_sec": 1}))
    server.on(RENEW, choosy)
    async with opened(renew_interval=0.1) as site:
        site.agent.add(running("t1"))
        site.agent.add(running("t2"))
        await server.wait_for(RENEW, 4)
        asked = [request.path.split("/")[-3] for request in server.asked(RENEW)]
        assert asked.count("t1") == 1
        assert {key.task_id for key, _ in site.agent.renewals} == {"t2"}
        gate.set()
        async with asyncio.timeout(30):
            while "t1" not in {key.task_id for key, _ in site.agent.renewals}:
                await asyncio.sleep(0.01)


async def test_an_end_that_cannot_be_saved_now_is_asked_for_again(opened: Any, server: Any) -> None:
    clock = TurnedClock()
    server.on(RENEW, answer(code=30001, message="newer", status=409))
    async with opened(clock=clock) as site:
        key = site.agent.add(running()).key
        site.agent.full = True
        await clock.until_sleeping(LOOPS)
        assert site.agent.cancelled == []
        site.agent.full = False
        await clock.advance(60)
        await site.agent.until(lambda: site.agent.cancelled)
        assert [each[0] for each in site.agent.cancelled] == [key]


async def test_after_an_outage_renewals_neither_wait_for_the_heartbeat_nor_storm(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    gate = asyncio.Event()
    server.on(RENEW, answer({}))
    async with opened(clock=clock) as site:
        site.agent.add(running())
        await clock.until_sleeping(LOOPS)
        await server.stop()
        await clock.advance(60)
        await clock.until_sleeping(LOOPS)
        server.on(HEARTBEAT, Reply(body=answer({}).body, gate=gate))  # nor does it answer soon
        beats, renewals = len(server.asked(HEARTBEAT)), len(server.asked(RENEW))
        await server.start()
        await clock.advance(60)
        await server.wait_for(HEARTBEAT, beats + 1)
        await server.wait_for(RENEW, renewals + 1)
        for _ in range(200):
            await asyncio.sleep(0.001)
        assert len(server.asked(RENEW)) <= renewals + 3
        gate.set()


async def test_a_plain_server_is_asked_to_renew_only_what_has_begun(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    server.on(REGISTER, NOT_FOUND)
    server.on(RENEW, answer({"renewed": True}))
    fresh = Lease(until=Instant.now(clock).plus(300))
    async with opened(clock=clock) as site:
        site.agent.add(running("begun"))
        site.agent.add(running("waits", status=Status.PENDING, run_no=0, lease=fresh))
        over = Lease(until=Instant.now(clock))
        site.agent.add(running("late", status=Status.PENDING, run_no=0, lease=over))
        await clock.until_sleeping(LOOPS)
        await clock.advance(60)
        await server.wait_for(RENEW, 3)
        asked = {request.path.split("/")[-3] for request in server.asked(RENEW)}
        assert asked == {"begun", "late"}


async def test_progress_is_told_when_it_changed_and_never_invented(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    server.on(RENEW, answer({}))
    server.on(PROGRESS, answer({}))
    async with opened(clock=clock) as site:
        key = site.agent.add(running(timeout=10.0)).key
        await clock.until_sleeping(LOOPS)
        for progress in (
            Progress(percent=None, message="x" * 600 + "\0"),
            Progress(percent=None, message="x" * 600 + "\0"),
            Progress(percent=42, message="a\0b"),
            Progress(percent=420, message=""),
        ):
            site.agent.progresses[key] = progress
            await clock.advance(2)
            await clock.until_sleeping(LOOPS)
        await server.wait_for(PROGRESS, 3)
        told = [request.json() for request in server.asked(PROGRESS)]
        assert [each["percent"] for each in told] == [None, 42, 100]
        assert [each["message"] for each in told] == [
            "x" * 500,
            "a\N{REPLACEMENT CHARACTER}b",
            "",
        ]
        assert told[0]["attempt_id"] == "t1-1"


async def test_a_plain_server_hears_of_long_tasks_alone_and_every_30_seconds(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    server.on(REGISTER, NOT_FOUND)
    server.on(RENEW, answer({}))
    server.on(PROGRESS, answer({}))
    async with opened(clock=clock) as site:
        long, short = running("long"), running("short", timeout=300.0)
        for task in (long, short):
            site.agent.add(task)
            site.agent.progresses[task.key] = Progress(message="step 1")
        await clock.until_sleeping(LOOPS)
        await clock.advance(29)
        assert server.asked(PROGRESS) == []
        await clock.advance(1)
        await server.wait_for(PROGRESS)
        await clock.until_sleeping(LOOPS)
        (request,) = server.asked(PROGRESS)
        assert request.path.split("/")[-2] == "long"
        assert request.json()["percent"] == 0


async def test_progress_that_cannot_be_read_ends_nothing(opened: Any, server: Any) -> None:
    clock = TurnedClock()
    server.on(RENEW, answer({}))
    server.on(PROGRESS, answer({}))
    async with opened(clock=clock) as site:
        key = site.agent.add(running()).key
        site.agent.progresses[key] = OSError("the file is gone")
        await clock.until_sleeping(LOOPS)
        await clock.advance(2)
        await clock.until_sleeping(LOOPS)
        site.agent.progresses[key] = Progress(percent=3)
        await clock.advance(2)
        (request,) = await server.wait_for(PROGRESS)
        assert request.json()["percent"] == 3
        assert len(site.said("error")) == 1


async def test_a_cancel_on_the_server_is_heard_with_the_next_progress(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    server.on(RENEW, answer({}))
    server.on(PROGRESS, answer(code=30002, message="cancelled", status=409))
    async with opened(clock=clock) as site:
        key = site.agent.add(running()).key
        site.agent.progresses[key] = Progress(percent=1)
        await clock.until_sleeping(LOOPS)
        await clock.advance(2)
        await server.wait_for(PROGRESS)
        await site.agent.until(lambda: site.agent.cancelled)
        site.agent.progresses[key] = Progress(percent=2)  # it still has its grace
        await clock.until_sleeping(LOOPS)
        await clock.advance(2)
        await server.wait_for(PROGRESS, 2)
        await clock.until_sleeping(LOOPS)
        assert site.agent.cancelled == [(key, 30002, "cancelled on the server")]


async def test_a_server_without_progress_is_told_none_until_the_next_reconnect(
    opened: Any, server: Any
) -> None:
    clock = TurnedClock()
    server.on(RENEW, answer({}))
    async with opened(clock=clock) as site:
        key = site.agent.add(running()).key
        await clock.until_sleeping(LOOPS)
        for percent in range(3):
            site.agent.progresses[key] = Progress(percent=percent)
            await clock.advance(2)
            await clock.until_sleeping(LOOPS)
        await server.wait_for(PROGRESS)
        assert len(server.asked(PROGRESS)) == 1
        assert site.agent.cancelled == []


async def test_a_stopping_agent_goes_on_renewing_and_reporting(opened: Any, server: Any) -> None:
    clock = TurnedClock()
    server.on(RENEW, answer({}))
    server.on(f"{API}/tasks/*/start", answer())
    async with opened(clock=clock) as site:
        site.agent.add(running())
        await clock.until_sleeping(LOOPS)
        site.agent.stopping.set()
        await clock.advance(60)
        await server.wait_for(RENEW, 2)
        await server.wait_for(HEARTBEAT, 2)
        assert len(await site.client.report([_start(1)])) == 1


async def test_a_report_after_the_end_is_an_outage_and_no_crash(opened: Any, server: Any) -> None:
    async with opened() as site:
        await server.wait_for(HEARTBEAT)
    with pytest.raises(Unreachable, match="stopping"):
        await site.client.report([_start(1)])


async def test_nobody_is_left_behind_when_the_plugin_ends(opened: Any, server: Any) -> None:
    async with opened():
        await server.wait_for(HEARTBEAT)
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("server_client")]


def test_values_that_cannot_be_read_are_left_out_and_integers_are_integers() -> None:
    assert metrics(Inventory()) == {}
    gpu = Gpu(index=0, uuid="GPU-1", name="H100", memory_used=3 * 2**30 + 1, power=71.6)
    found = metrics(
        Inventory(
            cpu_percent=12.3456,
            memory_used=5 * 2**30,
            memory_percent=100.04,
            disk_used=2**30 * 10 + 5,
            disk_percent=1234.5,
            gpus=(gpu,),
        )
    )
    assert found == {
        "cpu_usage_percent": 12.3,
        "memory_usage_percent": 100.0,
        "memory_used_gb": 5,
        "disk_usage_percent": 100.0,
        "disk_used_gb": 10,
        "gpu_metrics": [
            {
                "index": 0,
                "uuid": "GPU-1",
                "name": "H100",
                "memory_used_mb": 3072,
                "power_usage_w": 72,
            }
        ],
    }
    for name in ("memory_used_gb", "disk_used_gb"):
        assert isinstance(found[name], int)


def test_values_that_are_no_numbers_are_left_out() -> None:
    nothing = Inventory(cpu_percent=float("nan"), disk_percent=float("inf"))
    assert metrics(nothing) == {}
    gpu = Gpu(index=0, uuid="u", name="n", power=float("nan"))
    assert metrics(Inventory(gpus=(gpu,))) == {
        "gpu_metrics": [{"index": 0, "uuid": "u", "name": "n"}]
    }


def test_the_address_towards_a_server_that_no_name_leads_to_is_unknown() -> None:
    assert own_address("http://127.0.0.1:1") == "127.0.0.1"
    assert own_address("http://no.such.host.invalid") == ""


def _start(seq: int) -> Event:
    return Event(
        kind=EventKind.START,
        key=Key("t1", "t1-1"),
        source="server_client",
        run_no=1,
        at=0.0,
        seq=seq,
    )
