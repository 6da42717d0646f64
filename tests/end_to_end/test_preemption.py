"""Scenario 11: something urgent arrives where no slot is free."""

from tests.end_to_end.records import marking
from tests.end_to_end.site import Site, wait_for


def deaf(site: Site, wait: str) -> str:
    """A task that does not hear the polite signal."""
    return f"trap '' TERM\n{marking(site.marks_file, wait)}"


def test_scenario_11_the_least_urgent_makes_room_is_preempted_and_runs_again(site: Site) -> None:
    site.start_server()
    site.start_agent(agent__max_workers=2)
    gate = site.gate()
    yields = site.submit(deaf(site, gate.wait), priority=8)
    site.wait(yields, "running")
    while_a_slot_is_free = site.submit_marked("true", priority=1)
    assert site.wait(while_a_slot_is_free)["status"] == "completed"
    keeps = site.submit_marked(gate.wait, priority=2)
    site.wait(keeps, "running")
    hardly = site.submit_marked("true", priority=6)
    urgent = site.submit_marked("true", priority=5)
    done = site.wait(urgent)
    assert (done["status"], done["retry_count"]) == ("completed", 0)
    assert site.task(keeps)["status"] == "running"
    gate.open()
    task = site.wait(yields)
    assert (task["status"], task["exit_code"], task["retry_count"]) == ("completed", 0, 0)
    assert [(run["run_no"], run["reason"], run["signal"]) for run in task["runs"]] == [
        (1, "preempted", "SIGKILL"),
        (2, "exited", None),
    ]
    assert site.wait(keeps)["status"] == "completed"
    assert site.wait(hardly)["status"] == "completed"
    begun = [mark.task_id for mark in site.marks("begin")]
    assert begun[:4] == [yields, while_a_slot_is_free, keeps, urgent]
    assert (begun.count(keeps), begun.count(yields)) == (1, 2)


def test_an_agent_that_is_killed_while_it_makes_room_loses_and_doubles_nothing(
    site: Site,
) -> None:
    site.start_server()
    site.start_agent(agent__max_workers=1, subprocess_executor__grace=600)
    gate = site.gate()
    note = f"$REMOTEGPU_TASK_ID 1 >> {site.marks_file}"
    body = f"trap 'echo heard {note}' TERM\necho deaf {note}\n{gate.wait}"
    low = site.submit(body, priority=9)
    wait_for(lambda: site.marks("deaf"), "it runs")
    urgent = site.submit_marked("true", priority=1)
    wait_for(lambda: site.marks("heard"), "it was told to make room")
    site.agents["one"].kill()
    site.start_agent(agent__max_workers=1, subprocess_executor__grace=1)
    assert site.wait(urgent)["status"] == "completed"
    gate.open()
    assert site.wait(low)["status"] == "completed"
    assert len(site.marks("deaf", low)) == 2, "once before it made room, and once after"
    assert len(site.task(low)["runs"]) == 2
    assert len(site.marks("begin", urgent)) == 1
