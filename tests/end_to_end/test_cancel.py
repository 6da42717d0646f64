"""Scenario 15: cancel, wherever the task stands."""

from tests.end_to_end.records import processes_of
from tests.end_to_end.site import POLLED, Site, wait_for

HEARS_SOON = {"server_client__renew_interval": 0.3}
STUBBORN = (  # a tree of three, none of which ends at SIGTERM
    "trap 'echo stubborn got TERM' TERM\n"
    'sh -c \'trap "" TERM; sh -c "while :; do sleep 1; done" & while :; do sleep 1; done\' &\n'
    "while :; do sleep 0.1; done"
)


def test_scenario_15_a_waiting_task_is_gone_at_once(site: Site) -> None:
    site.start_server()
    task_id = site.submit_marked("true")

    assert site.cli("cancel", task_id).returncode == 0

    assert site.task(task_id)["status"] == "cancelled"
    assert site.cli("wait", task_id).returncode == 125
    site.start_agent()
    site.wait(site.submit("true"))  # the agent has claimed since
    assert site.task(task_id)["status"] == "cancelled"
    assert site.marks() == []


def test_scenario_15_a_task_that_waits_on_the_agent_for_a_slot_never_begins(site: Site) -> None:
    site.start_server(**POLLED)
    site.start_agent(agent__max_workers=1, **HEARS_SOON)
    gate = site.gate()
    runs = site.submit_marked(gate.wait)
    site.wait(runs, "running")
    waits = site.submit_marked("true", max_retries=3)
    site.holds(waits)

    assert site.cli("cancel", waits).returncode == 0
    task = site.wait(waits)

    assert (task["status"], task["reason"]) == ("cancelled", "cancelled")
    assert site.task(runs)["status"] == "running"
    gate.open()
    assert site.wait(runs)["status"] == "completed"
    assert site.marks("begin", waits) == []


def test_scenario_15_a_running_tree_gets_term_then_kill_after_the_grace_and_nothing_is_left(
    site: Site,
) -> None:
    site.start_server()
    site.start_agent(subprocess_executor__grace=1, **HEARS_SOON)
    task_id = site.submit(STUBBORN, max_retries=3, retry_delay=1)
    wait_for(lambda: len(processes_of(task_id)) >= 3, "the whole tree is there")

    assert site.cli("cancel", task_id).returncode == 0
    assert site.task(task_id)["cancel_requested_at"] is not None
    task = site.wait(task_id)

    assert (task["status"], task["reason"]) == ("cancelled", "cancelled")
    assert task["signal"] == "SIGKILL"
    assert "stubborn got TERM" in task["stdout"]
    assert processes_of(task_id) == []
    assert site.file().task(task_id)["status"] == "cancelled"
    wait_for(lambda: site.file().unsent() == [], "its end is told")
    assert site.file().earlier_runs(task_id) == []  # not retried


def test_scenario_15_a_task_may_use_its_grace_to_end_well(site: Site) -> None:
    site.start_server()
    site.start_agent(subprocess_executor__grace=600, **HEARS_SOON)
    task_id = site.submit_marked(
        "trap 'echo saved; exit 7' TERM; echo up; while :; do sleep 0.1; done"
    )
    wait_for(lambda: site.marks("begin", task_id), "it runs")
    wait_for(lambda: len(processes_of(task_id)) >= 2, "its trap is set")

    assert site.cli("cancel", task_id).returncode == 0
    task = site.wait(task_id)

    assert (task["status"], task["reason"]) == ("cancelled", "cancelled")
    assert processes_of(task_id) == []


def test_scenario_15_a_cancel_while_the_agent_is_down_is_carried_out_when_it_is_back(
    site: Site,
) -> None:
    site.start_server()
    agent = site.start_agent(**HEARS_SOON)
    task_id = site.submit_marked("sleep 600")
    site.wait(task_id, "running")
    agent.kill()

    assert site.cli("cancel", task_id).returncode == 0
    assert processes_of(task_id) != []
    site.start_agent(**HEARS_SOON)
    task = site.wait(task_id)

    assert (task["status"], task["reason"]) == ("cancelled", "cancelled")
    assert processes_of(task_id) == []
    assert len(site.marks("begin", task_id)) == 1


def test_scenario_15_cancelling_what_has_ended_changes_nothing(site: Site) -> None:
    site.start_server()
    site.start_agent()
    task_id = site.submit("echo kept")
    before = site.wait(task_id)

    assert site.cli("cancel", task_id).returncode == 4

    assert site.task(task_id) == before


def test_scenario_15_a_cancel_waits_for_no_renewal_and_no_heartbeat(site: Site) -> None:
    """It comes with the answer to the claim that hangs, also to an agent without a free slot."""
    site.start_server()
    seldom = {"server_client__renew_interval": 3600, "server_client__heartbeat_interval": 3600}
    site.start_agent(agent__max_workers=1, **seldom)
    gate = site.gate()
    task_id = site.submit_marked(gate.wait)
    site.wait(task_id, "running")

    assert site.cli("cancel", task_id, "--reason", "too slow").returncode == 0
    task = site.wait(task_id)

    assert (task["status"], task["reason"]) == ("cancelled", "cancelled")
    assert task["error"] == "cancelled by a user: too slow"
