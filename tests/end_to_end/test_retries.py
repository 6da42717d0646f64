"""Scenarios 1 and 2: a task that fails runs again after its delay, as often as it may."""

import json
from itertools import pairwise

import pytest

from tests.end_to_end.records import processes_of
from tests.end_to_end.site import Site, wait_for

STAMP = 'date "+stamp $REMOTEGPU_TASK_ID $REMOTEGPU_RUN_NO %s.%N"'


@pytest.fixture(scope="module")
def house(shared_site: Site) -> Site:
    """A server, and an agent that stays."""
    shared_site.start_server()
    shared_site.start_agent()
    return shared_site


def _third_time_lucky(site: Site) -> str:
    """Fails in its first two runs, each with a code of its own."""
    return (
        f"{STAMP} >> {site.marks_file}\n"
        "echo this is run $REMOTEGPU_RUN_NO\n"
        "case $REMOTEGPU_RUN_NO in 1) exit 11;; 2) exit 12;; *) exit 0;; esac"
    )


def _stamps(site: Site, task_id: str) -> list[float]:
    return [float(mark.rest) for mark in site.marks("stamp", task_id)]


def test_scenario_1_a_failed_task_runs_again_after_its_delay_and_every_run_is_on_record(
    house: Site,
) -> None:
    task_id = house.submit_marked(_third_time_lucky(house), max_retries=3, retry_delay=1)

    task = house.wait(task_id)

    assert (task["status"], task["exit_code"]) == ("completed", 0)
    assert task["stdout"] == "this is run 3\n"
    assert [mark.run_no for mark in house.marks("begin", task_id)] == [1, 2, 3]
    begun = _stamps(house, task_id)
    assert all(later - earlier >= 1 for earlier, later in pairwise(begun))
    earlier = house.file().earlier_runs(task_id)
    assert [(run["run_no"], run["exit_code"], run["stdout"]) for run in earlier] == [
        (1, 11, b"this is run 1\n"),
        (2, 12, b"this is run 2\n"),
    ]
    last = house.file().task(task_id)
    assert (last["run_no"], last["exit_code"], last["retry_count"]) == (3, 0, 2)


def test_scenario_1_the_retry_comes_also_if_the_agent_restarted_in_between(site: Site) -> None:
    site.start_server()
    agent = site.start_agent()
    waits = site.submit_marked(
        f"{STAMP} >> {site.marks_file}\nexit 9", max_retries=1, retry_delay=3
    )

    wait_for(lambda: site.marks("end", waits), "the first run ends")
    wait_for(lambda: site.file().earlier_runs(waits), "the first run is on record")
    agent.kill()
    assert site.file().status(waits) == "pending"
    site.start_agent()
    task = site.wait(waits)

    assert (task["status"], task["exit_code"]) == ("failed", 9)
    assert [mark.run_no for mark in site.marks("begin", waits)] == [1, 2]
    first, second = _stamps(site, waits)
    assert second - first >= 3
    assert [run["run_no"] for run in site.file().earlier_runs(waits)] == [1]


def test_scenario_1_a_run_that_failed_while_the_agent_was_down_is_retried_too(site: Site) -> None:
    site.start_server()
    agent = site.start_agent()
    gate = site.gate()
    task_id = site.submit_marked(
        f"{gate.wait}\n[ $REMOTEGPU_RUN_NO = 2 ]", max_retries=1, retry_delay=1
    )
    wait_for(lambda: site.marks("begin", task_id), "the first run begins")

    agent.kill()
    gate.open()
    wait_for(lambda: site.marks("end", task_id), "the first run ends")
    site.start_agent()
    task = site.wait(task_id)

    assert (task["status"], task["exit_code"]) == ("completed", 0)
    assert [(mark.run_no, mark.rest) for mark in site.marks("end", task_id)] == [(1, "1"), (2, "0")]
    assert [run["exit_code"] for run in site.file().earlier_runs(task_id)] == [1]


def test_scenario_2_after_its_last_retry_it_is_failed_with_the_last_code_and_output(
    house: Site,
) -> None:
    body = "echo out of run $REMOTEGPU_RUN_NO; echo err of run $REMOTEGPU_RUN_NO >&2"
    submitted = house.cli(
        *("submit", "--json", "--retries", "2", "--retry-delay", "1", "-c"),
        f"echo begin $REMOTEGPU_TASK_ID $REMOTEGPU_RUN_NO >> {house.marks_file}; {body}; "
        "exit $((40 + REMOTEGPU_RUN_NO))",
    )
    assert submitted.returncode == 0, submitted.stderr
    task_id = json.loads(submitted.stdout)["id"]

    assert house.cli("wait", task_id).returncode == 43

    task = json.loads(house.cli("task", "--json", task_id).stdout)
    assert (task["status"], task["exit_code"], task["reason"]) == ("failed", 43, "exited")
    assert house.cli("logs", task_id).stdout == "out of run 3\n"
    assert task["stderr"] == "err of run 3\n"
    assert [mark.run_no for mark in house.marks("begin", task_id)] == [1, 2, 3]
    assert [run["exit_code"] for run in house.file().earlier_runs(task_id)] == [41, 42]
    assert processes_of(task_id) == []
