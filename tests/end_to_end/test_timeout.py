"""Scenario 16: after the timeout nothing of the tree is left."""

import pytest

from tests.end_to_end.records import processes_of
from tests.end_to_end.site import Site, wait_for


@pytest.fixture(scope="module")
def house(shared_site: Site) -> Site:
    """A server, and an agent that stays."""
    shared_site.start_server()
    shared_site.start_agent(subprocess_executor__grace=1)
    return shared_site


def test_scenario_16_a_timeout_ends_the_whole_tree_and_keeps_what_it_printed(house: Site) -> None:
    task_id = house.submit(
        "echo so far; echo complaint >&2\n"
        "sh -c 'trap \"\" TERM; while :; do sleep 1; done' &\n"  # holds the output open
        "(sh -c 'sleep 600' & sleep 600) &\n"
        "trap '' TERM; while :; do sleep 0.1; done",
        timeout=1,
    )

    task = house.wait(task_id)

    assert (task["status"], task["reason"], task["error_code"]) == ("failed", "timeout", 30011)
    assert (task["stdout"], task["stderr"]) == ("so far\n", "complaint\n")
    assert house.cli("wait", task_id).returncode == 124
    assert processes_of(task_id) == []


def test_scenario_16_a_grandchild_that_holds_the_output_open_delays_no_end(house: Site) -> None:
    task_id = house.submit("sleep 600 & echo main is done; exit 5", timeout=500)

    task = house.wait(task_id)

    assert (task["status"], task["exit_code"], task["reason"]) == ("failed", 5, "exited")
    assert task["stdout"] == "main is done\n"
    assert processes_of(task_id) == []  # leftovers are killed at once


def test_scenario_16_every_run_has_the_timeout_for_itself_and_is_retried(house: Site) -> None:
    task_id = house.submit_marked(
        "[ $REMOTEGPU_RUN_NO = 2 ] || sleep 600", timeout=1, max_retries=1, retry_delay=1
    )

    task = house.wait(task_id)

    assert (task["status"], task["exit_code"]) == ("completed", 0)
    [first] = house.file().earlier_runs(task_id)
    assert (first["reason"], first["error_code"]) == ("timeout", 30011)
    assert processes_of(task_id) == []


def test_scenario_16_a_timeout_goes_on_counting_while_the_agent_is_down(site: Site) -> None:
    site.start_server()
    agent = site.start_agent(subprocess_executor__grace=1)
    task_id = site.submit_marked("sleep 600", timeout=2)
    wait_for(lambda: site.marks("begin", task_id), "it runs")

    agent.kill()
    site.start_agent(subprocess_executor__grace=1)
    task = site.wait(task_id)

    assert (task["status"], task["reason"]) == ("failed", "timeout")
    assert len(site.marks("begin", task_id)) == 1
    assert processes_of(task_id) == []


def test_scenario_16_a_run_that_the_timeout_ended_is_a_timeout_also_if_the_agent_died_meanwhile(
    site: Site,
) -> None:
    site.start_server()
    agent = site.start_agent(subprocess_executor__grace=600)
    gate = site.gate()
    mark = f"$REMOTEGPU_TASK_ID $REMOTEGPU_RUN_NO >> {site.marks_file}"
    task_id = site.submit(
        f"trap 'echo term {mark}; {gate.wait}; trap - TERM; echo over {mark}; kill $$' TERM\n"
        "while :; do sleep 0.1; done",
        timeout=1,
    )
    wait_for(lambda: site.marks("term", task_id), "its time is over, and it hears so")

    agent.kill()
    gate.open()
    wait_for(lambda: site.marks("over", task_id), "it ends by the signal")
    wait_for(lambda: processes_of(task_id) == [], "nothing of it is left")
    site.start_agent(subprocess_executor__grace=600)
    task = site.wait(task_id)

    assert (task["status"], task["reason"], task["error_code"]) == ("failed", "timeout", 30011)
    assert site.cli("wait", task_id).returncode == 124
