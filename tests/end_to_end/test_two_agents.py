"""Scenarios 13 and 14: two agents, and one of them dies."""

import concurrent.futures
import os
import signal

from tests.end_to_end.records import processes_of
from tests.end_to_end.site import POLLED, Site, wait_for

WHO = {"subprocess_executor__environment": '["PATH", "WHO"]'}


def _agent(site: Site, name: str, **settings: object) -> None:
    """An agent whose tasks know its name as WHO."""
    os.environ["WHO"] = name
    try:
        site.start_agent(name, **WHO, **settings)
    finally:
        del os.environ["WHO"]


def test_scenario_13_two_agents_share_the_tasks_and_none_goes_to_both(site: Site) -> None:
    site.start_server()
    for name in ("one", "two"):
        _agent(site, name, agent__max_workers=2)
    gate = site.gate()
    tasks = [
        site.submit_marked(f"echo who $REMOTEGPU_TASK_ID 1 $WHO >> {site.marks_file}; {gate.wait}")
        for _ in range(8)  # two to run for each, and as many that follow
    ]
    wait_for(lambda: len(site.marks("who")) == 4, "both are full")
    assert sorted(mark.rest for mark in site.marks("who")) == ["one", "one", "two", "two"]
    tasks += [site.submit_marked("true") for _ in range(40)]

    gate.open()

    ended = [site.wait(task_id) for task_id in tasks]
    assert {task["status"] for task in ended} == {"completed"}
    assert [len(task["runs"]) for task in ended] == [1] * len(tasks)
    assert sorted(mark.task_id for mark in site.marks("begin")) == sorted(tasks)
    names = [site.file(name).rows("SELECT task_id FROM tasks") for name in ("one", "two")]
    one, two = ({row["task_id"] for row in rows} for rows in names)
    assert one & two == set()
    assert one | two == set(tasks)


def _who(site: Site) -> dict[str, list[str]]:
    """Which tasks began on which agent."""
    began = site.marks("who")
    names = {mark.rest for mark in began}
    return {name: sorted(mark.task_id for mark in began if mark.rest == name) for name in names}


def test_nothing_waits_behind_a_long_run_while_another_agent_is_idle(site: Site) -> None:
    site.start_server()
    _agent(site, "one", agent__max_workers=1)
    who = f"echo who $REMOTEGPU_TASK_ID 1 $WHO >> {site.marks_file}"
    long, others = site.gate("long"), site.gate("others")
    first = site.submit(f"{who}; {long.wait}")
    site.wait(first, "running")
    _agent(site, "two", agent__max_workers=2)
    site.agents["two"].says("ready")

    tasks = [site.submit(f"{who}; {others.wait}") for _ in range(4)]
    wait_for(lambda: len(site.marks("who")) == 3, "the idle agent is full")
    assert [site.task(task_id)["status"] for task_id in tasks[2:]] == ["pending", "pending"]
    others.open()

    assert {site.wait(task_id)["status"] for task_id in tasks} == {"completed"}
    assert _who(site) == {"one": [first], "two": sorted(tasks)}
    assert [row["task_id"] for row in site.file("one").rows("SELECT task_id FROM tasks")] == [first]
    long.open()
    site.wait(first)


def test_what_was_taken_ahead_goes_to_another_agent_when_a_long_run_begins(site: Site) -> None:
    site.start_server()
    who = f"echo who $REMOTEGPU_TASK_ID 1 $WHO >> {site.marks_file}"
    gate = site.gate()
    for _ in range(40):
        site.submit("true")  # the slot turns over, so others are taken ahead
    long = site.submit(f"{who}; {gate.wait}")
    tasks = [site.submit(who) for _ in range(5)]
    _agent(site, "one", agent__max_workers=1)
    site.agents["one"].says("ready")
    for task_id in tasks:
        site.holds(task_id)
    site.wait(long, "running")
    _agent(site, "two", agent__max_workers=1)

    ended = [site.wait(task_id) for task_id in tasks]

    assert [(task["status"], len(task["runs"])) for task in ended] == [("completed", 1)] * 5
    assert _who(site) == {"one": [long], "two": sorted(tasks)}
    assert {site.file("one").status(task_id) for task_id in tasks} == {"cancelled"}
    site.told("one")
    assert site.file("one").dead_letters() == []
    gate.open()
    assert site.wait(long)["status"] == "completed"


def test_scenario_13_many_claims_at_the_same_moment_never_share_a_task(site: Site) -> None:
    site.start_server()
    tasks = {site.submit("true") for _ in range(60)}

    def claim(number: int) -> list[str]:
        agent = f"agent-{number % 8}"
        body = {"agent_id": agent, "machine_id": agent, "limit": 3, "request_id": f"r:{number}"}
        _, answer = site.call(
            *("POST", "/api/v1/agent/tasks/claim", body),
            token=site.agent_token,
            headers={"X-Agent-Protocol": "1"},
        )
        return [task["id"] for task in answer["data"]["tasks"]]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        granted = [task_id for answer in pool.map(claim, range(32)) for task_id in answer]

    assert len(granted) == len(tasks)
    assert set(granted) == tasks


def test_scenario_14_a_dead_agents_tasks_go_to_another_and_its_late_report_changes_nothing(
    site: Site,
) -> None:
    site.start_server(lease_sec=2, disconnect_grace=1)
    relay = site.relay()
    _agent(site, "one", server_client__url=relay.url)
    gates = {name: site.gate(f"gate-{name}") for name in ("one", "two")}
    task_id = site.submit_marked(
        f"until [ -e {site.root}/gate-$WHO ]; do sleep 0.05; done; echo by $WHO; [ $WHO = two ]"
    )
    first = site.wait(task_id, "running")
    site.agents["one"].kill()
    gates["one"].open()
    wait_for(lambda: site.marks("end", task_id), "the run of the dead agent ends, unreported")

    _agent(site, "two")
    wait_for(lambda: len(site.marks("begin", task_id)) == 2, "it runs on the other agent")
    second = site.wait(task_id, "running")
    assert second["attempt_id"] != first["attempt_id"]
    assert second["assigned_agent_id"] != first["assigned_agent_id"]
    relay.calls.clear()
    _agent(site, "one", server_client__url=relay.url)  # with the news that the run failed
    late = f"tasks/{task_id}/complete"
    wait_for(lambda: late in relay.calls, "the dead agent's report")
    wait_for(lambda: site.file().unsent() == [], "it is taken as stale, and not repeated")

    assert site.task(task_id)["status"] == "running"
    assert site.task(task_id)["attempt_id"] == second["attempt_id"]
    gates["two"].open()
    task = site.wait(task_id)
    assert (task["status"], task["exit_code"], task["stdout"]) == ("completed", 0, "by two\n")
    assert relay.calls.count(late) == 1
    assert site.file().dead_letters() == []
    assert len(site.marks("begin", task_id)) == 2


def test_scenario_14_the_late_report_is_answered_30001_over_http(site: Site) -> None:
    site.start_server(lease_sec=1, disconnect_grace=0)
    task_id = site.submit("true")

    def call(agent: str, what: str, **fields: object) -> tuple[int, int, dict[str, object]]:
        body = {"agent_id": agent, "machine_id": agent, **fields}
        status, answer = site.call(
            "POST", f"/api/v1/agent/tasks/{what}", body, token=site.agent_token
        )
        return status, answer["code"], answer["data"]

    def claimed(agent: str) -> str | None:
        tasks = call(agent, "claim", limit=1)[2]["tasks"]
        return str(tasks[0]["attempt_id"]) if isinstance(tasks, list) and tasks else None

    dead = claimed("one")
    assert call("one", f"{task_id}/start", attempt_id=dead)[:2] == (200, 0)
    alive = wait_for(lambda: claimed("two"), "the task is granted to another agent")
    before = site.task(task_id)

    for what in ("start", "progress", "lease/renew", "release"):
        fields = {"percent": 5, "message": ""} if what == "progress" else {}
        answer = call("one", f"{task_id}/{what}", attempt_id=dead, **fields)
        assert answer[:2] == (409, 30001), what
    late = {"attempt_id": dead, "exit_code": 0, "stdout": "late", "stderr": "", "error": ""}
    assert call("one", f"{task_id}/complete", **late)[:2] == (409, 30001)

    assert site.task(task_id) == before
    assert call("two", f"{task_id}/start", attempt_id=alive)[:2] == (200, 0)
    late |= {"attempt_id": alive, "stdout": "in time"}
    assert call("two", f"{task_id}/complete", **late)[:2] == (200, 0)
    assert site.task(task_id)["stdout"] == "in time"


def test_scenario_14_a_machine_that_dies_whole_loses_its_tasks_to_another(site: Site) -> None:
    site.start_server(lease_sec=2, disconnect_grace=1, **POLLED)
    _agent(site, "one", agent__max_workers=1)
    tasks = [site.submit_marked("[ $WHO = two ] || sleep 600") for _ in range(2)]
    site.wait(tasks[0], "running")
    site.holds(tasks[1])

    site.agents["one"].kill()
    for pid in (*site.supervisors(), *processes_of(tasks[0])):
        os.kill(pid, signal.SIGKILL)
    _agent(site, "two")

    ended = [site.wait(task_id) for task_id in tasks]
    assert [task["status"] for task in ended] == ["completed", "completed"]
    assert [len(site.marks("begin", task_id)) for task_id in tasks] == [2, 1]
