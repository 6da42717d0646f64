"""Why a task waits: each coded reason brought about, in words that say what to do."""

import re
from pathlib import Path
from typing import Any

import pytest

from agent_control_plane.reasons import Reason, ago
from agent_core.api.resources import size_in_words
from agent_core.api.wire import rfc3339
from tests.agent_control_plane.batch import Teller
from tests.agent_control_plane.kit import Agent, House

GIB = 2**30
T4 = {"uuid": "GPU-1", "name": "Tesla T4", "memory": 16 * GIB}
A100 = {"uuid": "GPU-2", "name": "NVIDIA A100", "memory": 80 * GIB}


async def why(house: House, task: dict[str, Any]) -> list[tuple[str, str, str]]:
    code, data = await house.user.call("GET", f"/{task['id']}/explain")
    assert code == 0, data
    return [(each["code"], each["machine_id"], each["text"]) for each in data["reasons"]]


async def machine(house: House, name: str = "1", **has: Any) -> Agent:
    """An agent that has registered, and has said once what is free: all of it."""
    agent = house.agent(name)
    gpus = has.get("gpus", [])
    await agent.register(**{"max_workers": 2, **has})
    await tell(agent, gpus, slots=has.get("max_workers", 2), limit=0)
    return agent


async def tell(
    agent: Agent, gpus: list[dict[str, Any]], slots: int = 2, limit: int = 10, **more: Any
) -> list[dict[str, Any]]:
    free = {"slots": slots, "resources": {"gpus": gpus, "cpus": 4, "memory": 8 * GIB, **more}}
    return await agent.claim(limit, free=free)


async def test_nobody_is_there(house: House) -> None:
    task = await house.user.submit()
    assert await why(house, task) == [("no_machine", "", "no agent has been heard of; start one")]


async def test_a_machine_that_nobody_knows(house: House) -> None:
    await machine(house)
    task = await house.user.submit(machine_id="gpu-typo")
    (reason,) = await why(house, task)
    assert reason[:2] == ("unknown_machine", "gpu-typo")
    assert "gpu-typo" in reason[2]


async def test_a_machine_that_is_silent(house: House) -> None:
    await machine(house)
    task = await house.user.submit(machine_id="machine-1")
    assert (await why(house, task))[0][0] == "soon"
    await house.pass_time(2 * 3600)
    assert await why(house, task) == [("silent", "machine-1", "silent for 2 h")]


async def test_room_is_there(house: House) -> None:
    agent = await machine(house, gpus=[T4])
    task = await house.user.submit(resources={"gpus": 1})
    assert (await why(house, task))[0][:2] == ("soon", "machine-1")
    assert len(await tell(agent, [T4])) == 1


async def test_more_urgent_ones_are_first(house: House) -> None:
    await machine(house, labels={"site": "b"})
    for priority in (1, 2, 7):
        await house.user.submit(priority=priority)
    await house.user.submit(priority=1, labels={"site": "a"})  # not for this machine
    await house.user.submit(priority=1, machine_id="machine-1")
    await house.user.submit(priority=1, machine_id="machine-2")
    task = await house.user.submit(labels={"site": "b"})
    assert await why(house, task) == [("behind", "machine-1", "behind 3 more urgent tasks")]


async def test_no_slot_is_free(house: House) -> None:
    agent = await machine(house)
    for name in ("one", "two"):
        await house.user.submit(id=name)
    held = await tell(agent, [])
    await agent.start(held[0])
    house.clock.jump_wall(150)
    task = await house.user.submit()
    words = "no free slot: held by one for 2 min, two for 2 min"
    assert await why(house, task) == [("no_slot", "machine-1", words)]


async def test_a_slot_that_only_the_agent_knows_to_be_taken(house: House) -> None:
    agent = await machine(house)
    await tell(agent, [], slots=0, limit=0)
    task = await house.user.submit()
    assert await why(house, task) == [("no_slot", "machine-1", "no free slot")]


async def test_devices_are_held(house: House) -> None:
    agent = await machine(house, gpus=[T4, T4], max_workers=8)
    for _ in range(2):
        await house.user.submit(resources={"gpus": 1})
        (held,) = await tell(agent, [T4, T4], slots=8)
        await agent.start(held)
        house.clock.jump_wall(170)
        await house.plane.sweep()
        await agent.renew(held)
    task = await house.user.submit(resources={"gpus": 2, "gpu": "t4"})
    await tell(agent, [T4], limit=0)  # before it has heard of the second one
    ((code, machine_id, words),) = await why(house, task)
    assert (code, machine_id) == ("gpus_held", "machine-1")
    assert re.fullmatch(
        r"2 t4 GPUs needed, 0 free: held by \w{8} for 5 min, \w{8} for 2 min", words
    )


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"cpus": 2}, "cpus_held", "2 cpus needed, 1 free: held by other for 0 s"),
        (
            {"memory": "6GiB"},
            "memory_held",
            "6 GiB of memory needed, 3 GiB free: held by other for 0 s",
        ),
    ],
)
async def test_cpus_and_memory_are_held(
    house: House, asked: dict[str, Any], code: str, words: str
) -> None:
    agent = await machine(house, cpus=4, memory=8 * GIB)
    await house.user.submit(id="other", resources={"cpus": 3, "memory": "5GiB"})
    assert len(await tell(agent, [])) == 1
    task = await house.user.submit(resources=asked)
    assert await why(house, task) == [(code, "machine-1", words)]


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (
            {"gpus": 1, "gpu": "a100"},
            "no_such_gpu",
            "1 a100 GPU needed; this machine has 2 × Tesla T4, 16 GiB",
        ),
        (
            {"gpus": 1, "gpu_memory": "20GiB"},
            "no_such_gpu",
            "1 GPU of 20 GiB needed; this machine has 2 × Tesla T4, 16 GiB",
        ),
        ({"gpus": 3}, "too_few_gpus", "3 GPUs needed; this machine has 2 in all"),
        ({"cpus": 6}, "too_few_cpus", "6 cpus needed; this machine has 4 in all"),
        (
            {"memory": "20GiB"},
            "too_little_memory",
            "20 GiB of memory needed; this machine has 8 GiB in all",
        ),
    ],
)
async def test_the_machine_never_has_as_much(
    house: House, asked: dict[str, Any], code: str, words: str
) -> None:
    await machine(house, gpus=[T4, T4], cpus=4, memory=8 * GIB)
    task = await house.user.submit(resources=asked)
    assert await why(house, task) == [(code, "machine-1", words)]


async def test_a_label_or_an_executor_is_missing(house: House) -> None:
    await machine(house, labels={"site": "a"}, executors=["child"])
    site = await house.user.submit(labels={"site": "b"})
    words = "label site=b is needed; this machine is site=a"
    assert await why(house, site) == [("label", "machine-1", words)]
    disk = await house.user.submit(labels={"disk": "ssd"})
    assert "has no such label" in (await why(house, disk))[0][2]
    boxed = await house.user.submit(executor="bubblewrap")
    words = "executor bubblewrap is needed; there is child"
    assert await why(house, boxed) == [("executor", "machine-1", words)]


async def test_an_older_agent_tells_too_little(house: House) -> None:
    older = house.agent(older=True)
    await older.claim()
    task = await house.user.submit(resources={"gpus": 1})
    assert (await why(house, task))[0][:2] == ("untold", "machine-1")
    for _ in range(2):
        await house.user.submit()
    assert len(await older.claim()) == 2  # what it runs at most, by our settings
    plain = await house.user.submit()
    assert (await why(house, plain))[0][0] == "no_slot"


async def test_the_most_hopeful_machine_is_told_first_and_not_all_of_a_crowd(
    house: House,
) -> None:
    for number in range(110):
        await house.agent(f"idle-{number:03}").call("heartbeat", machine_id=f"idle-{number:03}")
    task = await house.user.submit(resources={"gpus": 1, "gpu": "a100"})
    await machine(house, "near", gpus=[A100], max_workers=2)
    await machine(house, "kind", gpus=[T4])
    found = await why(house, task)
    assert [each[:2] for each in found[:2]] == [("soon", "machine-near"), ("untold", "idle-000")]
    assert len(found) == 100


async def test_it_is_held(house: House) -> None:
    task = await house.user.submit()
    agent = house.agent()
    held = await agent.one()
    house.clock.jump_wall(20)
    words = "granted to agent-1 20 s ago, which has not begun it"
    assert await why(house, task) == [("assigned", "machine-1", words)]
    await agent.start(held)
    house.clock.jump_wall(100)
    running = ("running", "machine-1", "agent-1 has run it for 1 min")
    assert await why(house, task) == [running]
    await house.user.cancel(task)
    cancelled = "its cancel was requested 0 s ago; agent-1 has not ended it yet"
    assert await why(house, task) == [running, ("cancel_requested", "machine-1", cancelled)]


async def test_it_is_suspended(house: House) -> None:
    task = await house.user.submit()
    agent = house.agent()
    held, teller = await agent.one(), Teller(agent)
    suspended = teller.event(held, "state", status="suspended")
    assert await teller.codes(teller.event(held, "start"), suspended) == [0, 0]
    words = "agent-1 holds it, suspended"
    assert await why(house, task) == [("suspended", "machine-1", words)]


async def test_its_agent_runs_it_again_soon(house: House) -> None:
    task = await house.user.submit(max_retries=1)
    agent = house.agent()
    held, teller = await agent.one(), Teller(agent)
    await teller.tell(teller.event(held, "start"))
    due = rfc3339(house.clock.wall() + 90)
    failed = teller.event(held, "run", exit_code=1, reason="exited", next_run_at=due, at=due)
    assert await teller.codes(failed) == [0]
    ((code, machine_id, words),) = await why(house, task)
    assert (code, machine_id) == ("retry_due", "machine-1")
    assert words.startswith("a run failed; on agent-1 it runs again in ")
    assert (await house.user.get(task))["waits_for"] == "its retry"


async def test_it_made_room_for_more_urgent_work(house: House) -> None:
    task = await house.user.submit()
    agent = house.agent()
    held, teller = await agent.one(), Teller(agent)
    await teller.tell(teller.event(held, "start"))
    over = teller.event(held, "run", reason="preempted", next_run_at="1970-01-01T00:00:00Z")
    assert await teller.codes(over) == [0]
    words = "it made room for more urgent work; agent-1 runs it again when there is room"
    assert await why(house, task) == [("preempted", "machine-1", words)]
    shown = await house.user.get(task)
    assert (shown["next_run_at"], shown["waits_for"]) == (None, "a slot")


async def test_its_machine_is_out_of_reach_and_then_others_may_have_it(house: House) -> None:
    task = await house.user.submit()
    agent = house.agent()
    await agent.start(await agent.one())
    await house.pass_time(400)
    found = await why(house, task)
    assert [each[0] for each in found] == ["running", "unreachable"]
    assert re.search(r"not been heard of since .*Z; others may have the task from", found[1][2])
    await house.pass_time(600)
    found = await why(house, task)
    assert [each[:2] for each in found] == [("unreachable", "machine-1"), ("silent", "machine-1")]
    assert "until then it may come back" in found[0][2]


async def test_it_waits_for_others(house: House) -> None:
    ids = [f"part-{number:02}" for number in range(25)]
    for each in ids:
        await house.user.submit(id=each)
    task = await house.user.submit(depends_on=ids)
    agent = house.agent()
    await agent.start(await agent.one())
    house.clock.jump_wall(5)
    found = await why(house, task)
    assert {each[0] for each in found} == {"dependency"}
    assert found[0][2] == "waits for task part-00, which is running on machine-1 for 5 s"
    assert found[1][2] == "waits for task part-01, which is pending"
    assert found[-1][2] == "and for 5 tasks more"
    assert (await house.user.get(task))["waits_for"] == "25 tasks"


async def test_its_retry_is_not_due_yet(house: House) -> None:
    task = await house.user.submit(max_retries=1, retry_delay=120)
    older = house.agent(older=True)
    held = await older.one()
    await older.start(held)
    await older.complete(held, 1)
    ((code, _, words),) = await why(house, task)
    assert code == "retry_due"
    assert words.startswith("it runs again in 2 min, at 20")
    assert (await house.user.get(task))["waits_for"] == "its retry"


async def test_it_has_ended(house: House) -> None:
    task = await house.user.submit()
    await house.user.cancel(task, "enough")
    ((code, _, words),) = await why(house, task)
    assert code == "final"
    assert re.fullmatch(r"cancelled at .*Z: cancelled: enough", words)
    assert (await house.user.get(task))["waits_for"] is None
    assert (await house.user.call("GET", "/nobody/explain"))[0] == 30004


async def test_the_list_says_in_short_what_each_waits_for(house: House) -> None:
    await house.user.submit(name="plain")
    await house.user.submit(name="gpu", resources={"gpu": "a100"}, machine_id="gpu3")
    await house.user.submit(name="ram", resources={"memory": "1GiB"}, labels={"site": "b"})
    _, page = await house.user.call("GET")
    waits = {task["name"]: task["waits_for"] for task in page["tasks"]}
    assert waits == {"plain": "a slot", "gpu": "1 a100 GPU, gpu3", "ram": "memory, site=b"}


def test_durations_and_sizes_are_told_in_the_largest_unit_that_says_something() -> None:
    told = [ago(each) for each in (-1, 59.9, 60, 119, 3600, 7200, 86400, 2 * 86400)]
    assert told == ["0 s", "59 s", "1 min", "1 min", "1 h", "2 h", "24 h", "2 d"]
    assert [size_in_words(each) for each in (0, 1023, 1536, 20 * GIB)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "20 GiB",
    ]  # fmt: skip


def test_the_docs_and_these_tests_name_every_reason() -> None:
    docs = Path(__file__).parents[2].joinpath("docs/explain.md").read_text()
    codes = {reason.value for reason in Reason}
    assert set(re.findall(r"^\| `(\w+)` \|", docs, re.MULTILINE)) == codes
    here = Path(__file__).read_text()
    assert {code for code in codes if f'"{code}"' in here} == codes
