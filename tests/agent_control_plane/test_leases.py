"""A task's way through attempts: granted, held, lost, revived, ended, each counted once."""

import asyncio
from typing import Any

import pytest

from agent_control_plane.queue import MOST
from tests.agent_control_plane.kit import House, Place, open_house

LEASE = 300.0
GRACE = 600.0


async def test_a_task_goes_from_submit_to_its_result(house: House) -> None:
    agent, user = house.agent(), house.user
    submitted = await user.submit("echo hi", name="hello", env={"A": "1"}, args=["x"])
    assert submitted["status"] == "pending"
    task = await agent.one()
    assert task["id"] == submitted["id"]
    assert task["assigned_agent_id"] == "agent-1"
    assert (task["env"], task["args"], task["command"]) == ({"A": "1"}, ["x"], "echo hi")
    assert (await user.get(task))["status"] == "assigned"
    assert (await agent.start(task))[0] == 0
    running = await user.get(task)
    assert (running["status"], running["machine_id"]) == ("running", "machine-1")
    usage = {"wall_s": 1.5, "user_s": 1.0, "system_s": 0.1, "max_rss_bytes": 4096}
    code, data = await agent.complete(
        task,
        3,
        status="failed",
        reason="exited",
        stdout="out",
        stderr="err",
        usage=usage,
        truncated={"stdout": 7, "stderr": None},
    )
    assert (code, data) == (0, {"task_id": task["id"], "status": "failed"})
    ended = await user.get(task)
    assert (ended["status"], ended["exit_code"], ended["reason"]) == ("failed", 3, "exited")
    assert (ended["stdout"], ended["stderr"], ended["usage"]) == ("out", "err", usage)
    assert ended["truncated"] == {"stdout": 7, "stderr": None}
    [run] = ended["runs"]
    assert (run["run_no"], run["exit_code"], run["started_at"]) == (1, 3, ended["started_at"])


async def test_urgent_tasks_go_first_and_equal_ones_in_their_order(house: House) -> None:
    user = house.user
    names = []
    for name, priority in (("c", 5), ("d", 5), ("a", 1), ("e", 10), ("b", 2)):
        await user.submit(name=name, priority=priority)
        names.append(name)
    assert [task["name"] for task in await house.agent().claim(4)] == ["a", "b", "c", "d"]


async def test_a_task_for_one_machine_waits_for_it(house: House) -> None:
    first = await house.user.submit(machine_id="machine-2", priority=1)
    second = await house.user.submit(priority=9)
    assert [task["id"] for task in await house.agent("1").claim()] == [second["id"]]
    assert [task["id"] for task in await house.agent("2").claim()] == [first["id"]]


async def test_two_agents_claim_at_once_and_no_task_goes_to_both(house: House) -> None:
    for _ in range(60):
        await house.user.submit()
    agents = [house.agent(str(number)) for number in range(12)]
    brought = await asyncio.gather(*(agent.claim(3) for agent in agents for _ in range(3)))
    ids = [task["id"] for tasks in brought for task in tasks]
    assert len(ids) == len(set(ids)) == 60


async def test_the_same_claim_twice_brings_the_same_tasks(house: House) -> None:
    for _ in range(4):
        await house.user.submit()
    agent = house.agent()
    first = await agent.claim(2, "s:1")
    house.clock.jump_wall(10)
    again = await agent.claim(4, "s:1")
    assert [t["attempt_id"] for t in again] == [t["attempt_id"] for t in first]
    assert await house.agent("2").claim(10, "s:1") != []  # another agent's number is another claim
    assert again[0]["lease_expires_at"] > first[0]["lease_expires_at"]  # it counts from this one


async def test_a_repeated_claim_brings_only_what_is_still_held_and_then_is_a_new_one(
    house: House,
) -> None:
    agent = house.agent()
    for _ in range(3):
        await house.user.submit()
    one, two = await agent.claim(2, "s:1")
    await agent.complete(one)
    assert [t["attempt_id"] for t in await agent.claim(2, "s:1")] == [two["attempt_id"]]
    await agent.complete(two)
    [fresh] = await agent.claim(2, "s:1")
    assert fresh["id"] not in {one["id"], two["id"]}


async def test_an_empty_claim_is_not_remembered(house: House) -> None:
    agent = house.agent()
    assert await agent.claim(1, "s:1") == []
    await house.user.submit()
    assert len(await agent.claim(1, "s:1")) == 1


async def test_claims_of_the_same_number_at_once_share_their_tasks(house: House) -> None:
    for _ in range(10):
        await house.user.submit()
    agent = house.agent()
    answers = await asyncio.gather(*(agent.claim(2, "s:1") for _ in range(8)))
    assert len({tuple(t["attempt_id"] for t in tasks) for tasks in answers}) == 1


@pytest.mark.parametrize("limit", [0, 100_000])
async def test_the_limit_bounds_the_answer(house: House, limit: int) -> None:
    for _ in range(MOST + 5):
        await house.user.submit()
    assert len(await house.agent().claim(limit)) == min(limit, MOST)


async def test_every_report_may_come_twice_and_the_second_changes_nothing(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    for verb, more in (
        ("start", {}),
        ("complete", {"exit_code": 1, "error": "boom", "stdout": "x"}),
    ):
        code, first = await agent.tell(task, verb, **more)
        assert code == 0
        before = house.rows(task)
        house.clock.jump_wall(5)
        assert await agent.tell(task, verb, **more) == (0, first)
        assert house.rows(task) == before
    before = house.rows(task)
    assert (await agent.complete(task, 0, stdout="other"))[0] == 0
    assert (await agent.start(task))[0] == 0  # also when it has ended since
    assert house.rows(task) == before


async def test_a_start_that_comes_after_its_complete_changes_nothing(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    await agent.complete(task, 1)
    before = house.rows(task)
    assert (await agent.start(task))[0] == 0
    assert house.rows(task) == before


async def test_an_attempt_that_was_lost_hears_so_also_when_the_task_is_final(house: House) -> None:
    first, second = house.agent("1"), house.agent("2")
    await house.user.submit(disconnect_grace=0)
    lost = await first.one()
    await first.start(lost)
    house.clock.jump_wall(LEASE)
    await second.complete(await second.one())
    before = house.rows(lost)
    for verb in ("start", "lease/renew", "complete", "release"):
        assert (await first.tell(lost, verb))[0] == 30001, verb
    assert house.rows(lost) == before


async def test_one_complete_sent_many_times_at_once_ends_the_task_once(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    await agent.start(task)
    answers = await asyncio.gather(*(agent.complete(task, code) for code in range(10)))
    assert {code for code, _ in answers} == {0}
    ended = await house.user.get(task)
    assert len(ended["runs"]) == 1
    assert ended["runs"][0]["exit_code"] == ended["exit_code"]


async def test_what_has_not_begun_can_be_given_back(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    assert (await agent.tell(task, "release", reason="drain"))[1]["status"] == "pending"
    again = await house.agent("2").one()
    assert again["id"] == task["id"]
    before = house.rows(task)
    assert (await agent.tell(task, "release"))[0] == 0  # repeated: no change
    assert (await agent.start(task))[0] == 30001
    assert (await agent.renew(task))[0] == 30001
    assert (await agent.complete(task))[0] == 30001
    assert house.rows(task) == before


async def test_what_has_begun_cannot_be_given_back(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    await agent.start(task)
    before = house.rows(task)
    assert (await agent.tell(task, "release"))[0] == 30014
    assert house.rows(task) == before


async def test_renew_extends_the_lease_by_the_servers_terms(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    house.clock.jump_wall(100)
    code, data = await agent.tell(task, "lease/renew", extend_sec=999_999)
    assert (code, data["renewed"], data["lease_sec"]) == (0, True, 300)
    shown = await house.user.get(task)
    assert shown["lease_expires_at"] == data["lease_expires_at"]
    assert shown["regrant_at"] == data["regrant_at"]
    house.clock.jump_wall(LEASE - 1)
    assert (await agent.start(task))[0] == 0


async def test_an_agent_that_dies_loses_its_task_after_lease_and_grace(house: House) -> None:
    dead, other = house.agent("1"), house.agent("2")
    await house.user.submit()
    task = await dead.one()
    await dead.start(task)
    await house.pass_time(LEASE + GRACE - 1)
    shown = await house.user.get(task)
    assert shown["status"] == "running"
    assert shown["unreachable_since"] == shown["lease_expires_at"]
    assert await other.claim() == []
    house.clock.jump_wall(1)
    regranted = await other.one()
    assert regranted["id"] == task["id"]
    await other.start(regranted)
    before = house.rows(task)
    for verb, more in (
        ("start", {}),
        ("lease/renew", {}),
        ("progress", {"percent": 1}),
        ("complete", {"exit_code": 0, "stdout": "late"}),
        ("release", {}),
    ):
        assert (await dead.tell(task, verb, **more))[0] == 30001, verb
    assert house.rows(task) == before
    assert (await other.complete(regranted))[0] == 0
    ended = await house.user.get(task)
    assert [run["agent_id"] for run in ended["runs"]] == ["agent-1", "agent-2"]


@pytest.mark.parametrize("seconds", [LEASE + 1, LEASE + GRACE - 1, LEASE + GRACE + 5000])
async def test_a_machine_that_comes_back_before_a_new_grant_goes_on_as_before(
    house: House, seconds: float
) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    await agent.start(task)
    await house.pass_time(seconds)
    assert (await agent.renew(task))[0] == 0
    assert (await house.user.get(task))["status"] == "running"
    assert await house.agent("2").claim() == []
    assert (await agent.complete(task))[1]["status"] == "completed"


async def test_a_result_that_comes_late_but_before_a_new_grant_is_taken(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    await agent.start(task)
    await house.pass_time(LEASE + GRACE + 1)
    shown = await house.user.get(task)
    assert (shown["status"], shown["started_at"], shown["machine_id"]) == ("pending", None, "")
    assert len(shown["runs"]) == 1
    assert (await agent.complete(task, 0, stdout="late"))[1]["status"] == "completed"
    assert (await house.user.get(task))["stdout"] == "late"
    assert await house.agent("2").claim() == []


@pytest.mark.parametrize("seconds", [10.0, LEASE + GRACE + 1])
async def test_renewing_what_has_not_begun_does_not_begin_it(house: House, seconds: float) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    await house.pass_time(seconds)
    assert (await agent.renew(task))[0] == 0
    shown = await house.user.get(task)
    assert (shown["status"], shown["started_at"], shown["runs"]) == ("assigned", None, [])
    assert (await agent.tell(task, "release"))[0] == 0


async def test_progress_revives_a_lease_too(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    await agent.start(task)
    await house.pass_time(LEASE + GRACE + 1)
    assert (await agent.tell(task, "progress", percent=40, message="epoch 4"))[0] == 0
    shown = await house.user.get(task)
    assert (shown["status"], shown["progress"]) == ("running", 40)
    assert shown["progress_message"] == "epoch 4"
    assert await house.agent("2").claim() == []


async def test_progress_within_a_lease_does_not_extend_it(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    await agent.start(task)
    before = (await house.user.get(task))["lease_expires_at"]
    house.clock.jump_wall(50)
    assert (await agent.tell(task, "progress", percent=None, message="m" * 900))[0] == 0
    shown = await house.user.get(task)
    assert shown["lease_expires_at"] == before
    assert (shown["progress"], len(shown["progress_message"])) == (None, 500)


async def test_a_start_after_the_lease_must_renew_first(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    task = await agent.one()
    house.clock.jump_wall(LEASE)
    before = house.rows(task)
    assert (await agent.start(task))[0] == 30003
    assert house.rows(task) == before
    assert (await agent.renew(task))[0] == 0
    assert (await agent.start(task))[0] == 0


async def test_a_tasks_own_grace_counts(house: House) -> None:
    await house.user.submit(disconnect_grace=0)
    task = await house.agent("1").one()
    assert task["disconnect_grace"] == 0
    house.clock.jump_wall(LEASE)
    assert (await house.agent("2").one())["id"] == task["id"]


async def test_leases_that_run_out_three_times_end_the_task(house: House) -> None:
    await house.user.submit(disconnect_grace=0)
    task: dict[str, Any] = {}
    for number in range(3):
        agent = house.agent(str(number))
        task = await agent.one()
        await agent.start(task)
        await house.pass_time(LEASE)
    ended = await house.user.get(task)
    assert (ended["status"], ended["error_code"], ended["reason"]) == ("failed", 30010, "lost")
    assert len(ended["runs"]) == 3
    before = house.rows(task)
    assert (await house.agent("2").complete(task))[0] == 30002
    assert house.rows(task) == before
    assert await house.agent("9").claim() == []


async def test_attempts_that_never_began_do_not_count(house: House) -> None:
    await house.user.submit(disconnect_grace=0)
    for number in range(8):
        await house.agent(str(number)).one()
        await house.pass_time(LEASE)
    for name in ("one", "two"):  # and these two do, but are no third
        task = await house.agent(name).one()
        await house.agent(name).start(task)
        await house.pass_time(LEASE)
    assert len(await house.agent("idle").claim()) == 1
    await house.pass_time(LEASE)
    assert len(await house.agent("last").claim()) == 1


async def test_an_attempt_that_was_revived_does_not_count_as_lost(house: House) -> None:
    agent = house.agent()
    await house.user.submit(disconnect_grace=0)
    task = await agent.one()
    await agent.start(task)
    for _ in range(5):
        await house.pass_time(LEASE)
        assert (await agent.renew(task))[0] == 0
    assert (await agent.complete(task))[1]["status"] == "completed"


async def test_the_server_sweeps_by_itself(house: House) -> None:
    agent = house.agent()
    await house.user.submit(disconnect_grace=0)
    task = await agent.one()
    await house.clock.until_sleeping()
    house.clock.jump_wall(LEASE)
    for _ in range(100):
        await house.clock.advance(5)
        if (await house.user.get(task))["status"] == "pending":
            break
        await asyncio.sleep(0.01)
    assert (await house.user.get(task))["status"] == "pending"


async def test_another_agents_id_does_not_open_an_attempt(house: House) -> None:
    await house.user.submit()
    task = await house.agent("1").one()
    before = house.rows(task)
    for verb in ("start", "lease/renew", "complete", "release"):
        assert (await house.agent("2").tell(task, verb))[0] == 30001
    assert house.rows(task) == before


async def test_a_task_that_nobody_knows_is_said_so(house: House) -> None:
    nothing = {"id": "no-such-task", "attempt_id": "x"}
    for verb in ("start", "lease/renew", "progress", "complete", "release"):
        assert (await house.agent().tell(nothing, verb))[0] == 30004


async def test_an_attempt_of_another_task_is_not_this_ones(house: House) -> None:
    agent = house.agent()
    await house.user.submit()
    await house.user.submit()
    one, two = await agent.claim(2)
    assert (await agent.complete({**one, "attempt_id": two["attempt_id"]}))[0] == 30001


# --- cancel


async def test_a_waiting_task_is_cancelled_at_once(house: House) -> None:
    task = await house.user.submit()
    code, shown = await house.user.cancel(task, "not needed")
    assert (code, shown["status"], shown["reason"]) == (0, "cancelled", "cancelled")
    assert "not needed" in shown["error"]
    assert await house.agent().claim() == []
    assert (await house.user.cancel(task))[0] == 30002


async def held(house: House, *, begun: bool = True, **more: Any) -> dict[str, Any]:
    await house.user.submit(**more)
    task = await house.agent().one()
    if begun:
        await house.agent().start(task)
    return task


async def test_a_cancel_reaches_the_agent_by_its_next_renew(house: House) -> None:
    task = await held(house)
    _, shown = await house.user.cancel(task, "wrong data")
    assert (shown["status"], shown["cancel_reason"]) == ("running", "wrong data")
    assert shown["cancel_requested_at"]
    before = house.rows(task)
    code, words = await house.agent().renew(task)
    assert code == 30002
    assert "wrong data" in words["message"]
    assert (await house.agent().tell(task, "progress", percent=1))[0] == 30002
    assert house.rows(task) == before
    assert (await house.user.cancel(task, "again"))[0] == 0
    assert house.rows(task) == before  # the first word stands


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"exit_code": 143, "status": "cancelled"}, "cancelled"),
        ({"exit_code": -1}, "cancelled"),
        ({"exit_code": 1, "status": "failed"}, "cancelled"),
        ({"exit_code": 0}, "completed"),
        ({"exit_code": 0, "status": "completed"}, "completed"),
    ],
)
async def test_the_end_of_a_cancelled_attempt_is_taken_with_its_output(
    house: House, told: dict[str, Any], status: str
) -> None:
    task = await held(house)
    await house.user.cancel(task)
    code, data = await house.agent().tell(task, "complete", stdout="so far", **told)
    assert (code, data["status"]) == (0, status)
    ended = await house.user.get(task)
    assert (ended["status"], ended["stdout"]) == (status, "so far")


async def test_a_cancelled_task_whose_lease_runs_out_is_not_granted_again(house: House) -> None:
    task = await held(house, begun=False)
    await house.user.cancel(task)
    assert (await house.agent().start(task))[0] == 0  # it had begun before it heard
    await house.pass_time(LEASE)
    ended = await house.user.get(task)
    assert ended["status"] == "cancelled"
    assert await house.agent("2").claim() == []
    assert (await house.agent().complete(task, 0))[0] == 30002


async def test_a_cancel_while_the_machine_is_out_of_reach_ends_the_task_at_once(
    house: House,
) -> None:
    task = await held(house)
    house.clock.jump_wall(LEASE + 10)
    assert (await house.user.cancel(task))[1]["status"] == "cancelled"
    assert (await house.agent().renew(task))[0] == 30002


async def test_a_cancel_after_the_grace_ends_what_could_have_come_back(house: House) -> None:
    task = await held(house)
    await house.pass_time(LEASE + GRACE)
    assert (await house.user.cancel(task))[1]["status"] == "cancelled"
    assert (await house.agent().complete(task))[0] == 30002


async def test_a_cancelled_task_given_back_is_cancelled(house: House) -> None:
    task = await held(house, begun=False)
    await house.user.cancel(task)
    assert (await house.agent().tell(task, "release"))[1]["status"] == "cancelled"


async def test_the_same_claim_also_brings_what_is_to_be_cancelled(house: House) -> None:
    await house.user.submit()
    agent = house.agent()
    [task] = await agent.claim(1, "s:1")
    await house.user.cancel(task)
    before = house.rows(task)
    assert [t["attempt_id"] for t in await agent.claim(1, "s:1")] == [task["attempt_id"]]
    assert house.rows(task) == before  # its lease is to run out


# --- across a restart of the server


async def test_what_was_granted_is_still_granted_after_a_restart(place: Place) -> None:
    async with open_house(place) as house:
        await house.user.submit()
        [task] = await house.agent().claim(1, "s:1")
    async with open_house(place) as house:
        assert [t["attempt_id"] for t in await house.agent().claim(1, "s:1")] == [
            task["attempt_id"]
        ]
        assert await house.agent("2").claim() == []
        assert (await house.agent().complete(task))[0] == 0
