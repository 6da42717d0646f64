"""Scenarios 9 and 10: what waits for another task, through the command line and real processes."""

import json

import pytest

from tests.end_to_end.site import Site


@pytest.fixture(scope="module")
def busy(shared_site: Site) -> Site:
    """A site with one agent that has one slot, idle when a test begins."""
    shared_site.start_server()
    shared_site.start_agent(agent__max_workers=1)
    return shared_site


def test_scenario_9_a_task_that_waits_for_another_holds_no_slot(busy: Site) -> None:
    gate = busy.gate("slot")
    first = busy.submit(gate.wait)
    busy.wait(first, "running")
    second = busy.cli("submit", "--after", first, "-c", "true")
    assert second.returncode == 0, second.stderr
    waiting = second.stdout.strip().split()[-1]
    other = busy.submit("true", priority=10)
    gate.open()
    busy.wait(first)
    # The less urgent one had its turn; the one slot was nobody's but theirs.
    assert busy.wait(other)["status"] == "completed"
    assert busy.wait(waiting)["status"] == "completed"


def test_scenario_9_while_it_waits_the_slot_is_for_others(busy: Site) -> None:
    never = busy.submit("true", machine_id="a-machine-that-is-not-there")
    waiting = busy.submit("true", depends_on=[never], priority=1)
    others = [busy.submit("true", priority=10) for _ in range(5)]
    for task_id in others:
        assert busy.wait(task_id)["status"] == "completed"
    task = busy.task(waiting)
    assert (task["status"], task["assigned_agent_id"], task["attempt_id"]) == ("pending", "", None)


def test_scenario_9_a_failed_dependency_ends_its_dependents_with_the_chain_of_reasons(
    busy: Site,
) -> None:
    gate = busy.gate("reasons")
    first = busy.submit(f"{gate.wait}; exit 3", name="first")
    second = busy.submit("touch second", depends_on=[first], name="second", workdir=str(busy.root))
    third = busy.submit("touch third", depends_on=[second], name="third", workdir=str(busy.root))
    gate.open()
    told = busy.wait(third)
    assert (told["status"], told["error_code"], told["reason"]) == ("failed", 30009, "dependency")
    assert second in told["error"] or "second" in told["error"]
    assert "3" in told["error"].replace(third, "").replace(second, "").replace(first, "")
    assert busy.task(second)["error_code"] == 30009
    assert not (busy.root / "second").exists()
    assert not (busy.root / "third").exists()
    shown = busy.cli("wait", third)
    assert shown.returncode != 0
    assert "depend" in shown.stdout + shown.stderr


def test_scenario_9_a_cancelled_dependency_ends_its_dependents_too(busy: Site) -> None:
    gate = busy.gate("cancelled")
    first = busy.submit(gate.wait)
    second = busy.submit("true", depends_on=[first])
    busy.wait(first, "running")
    assert busy.cli("cancel", first).returncode == 0
    assert busy.wait(second)["error_code"] == 30009


def test_scenario_9_unknown_ids_are_refused_at_submit(busy: Site) -> None:
    done = busy.cli("submit", "--after", "no-such-task", "-c", "true", "--json")
    assert done.returncode != 0
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["code"] == 30005
    assert "no-such-task" in error["message"]


def test_scenario_9_a_cycle_is_refused(busy: Site) -> None:
    first = busy.submit("true", machine_id="a-machine-that-is-not-there")
    second = busy.submit("true", depends_on=[first])
    described = {"command": "true", "depends_on": [second]}
    status, answer = busy.call("PUT", f"/api/v1/tasks/{first}", described)
    assert (status, answer["code"]) == (400, 30005), answer
    assert "cycle" in answer["message"]


def test_scenario_10_when_all_are_complete_it_runs_at_once(busy: Site) -> None:
    """At once: long before the next poll would have found it."""
    before = [busy.submit("true") for _ in range(3)]
    last = busy.submit("true", depends_on=before)
    task = busy.wait(last)
    assert task["status"] == "completed"
    ended = max(busy.task(each)["ended_at"] for each in before)
    assert task["started_at"] >= ended


def test_scenario_10_dependencies_outlive_a_restart_of_the_server(site: Site) -> None:
    site.start_server()
    first = site.submit("true")
    second = site.submit("true", depends_on=[first])
    assert site.server
    site.server.kill()
    site.start_server()
    site.start_agent()
    assert site.wait(second)["status"] == "completed"
    assert site.task(first)["status"] == "completed"
