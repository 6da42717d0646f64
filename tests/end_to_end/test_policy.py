"""Scenario 12: what the site's policy forbids never starts, and is reported with the reason."""

import json

from tests.end_to_end.records import processes_of
from tests.end_to_end.site import POLLED, Site, wait_for


def _is_refused(site: Site, task_id: str, why: str, start_id: str = "") -> None:
    """`start_id`: of a start that was stored, and never begun, before the rules changed."""
    task = site.wait(task_id)
    assert (task["status"], task["reason"], task["error_code"]) == ("failed", "refused", 30006)
    assert why in task["error"]
    assert task["exit_code"] is None
    assert task["started_at"] is None
    assert task["runs"] == []
    assert site.file().task(task_id)["start_id"] == start_id  # not even tried
    wait_for(lambda: site.file().unsent(task_id) == [], "the agent knows that it was told")
    assert processes_of(task_id) == []


def test_scenario_12_what_is_not_allowed_or_blocked_is_refused_before_anything_starts(
    site: Site,
) -> None:
    site.start_server()
    site.start_agent(
        command_policy__allowed_commands='["echo", "/bin/bash"]',
        command_policy__blocked_patterns='["rm\\\\s+-rf", "curl .*evil"]',
    )
    traces = [site.root / f"trace-{number}" for number in range(3)]

    not_allowed = site.submit("touch", args=[str(traces[0])])
    blocked_shell = site.submit(f"touch {traces[1]}; rm  -rf /nothing")
    blocked_args = site.submit("echo", args=["rm", "-rf", "/nothing"])
    disguised = site.submit(
        f"#!/usr/bin/touch {traces[2]}\n", type="script"
    )  # its program is what the #! line names
    allowed = site.submit("echo", args=["fine"])
    allowed_shell = site.submit("echo also fine")

    _is_refused(site, not_allowed, "'touch' is not among this site's allowed_commands")
    _is_refused(site, blocked_shell, r"blocked pattern 'rm\\s+-rf'")
    _is_refused(site, blocked_args, r"blocked pattern 'rm\\s+-rf'")
    _is_refused(site, disguised, "is not among this site's allowed_commands")
    assert site.wait(allowed)["stdout"] == "fine\n"
    assert site.wait(allowed_shell)["stdout"] == "also fine\n"
    assert not any(trace.exists() for trace in traces)


def test_scenario_12_a_refusal_is_not_retried_and_is_told_to_whoever_waits(site: Site) -> None:
    site.start_server()
    site.start_agent(command_policy__blocked_patterns='["forbidden"]')

    waited = site.cli(
        *("submit", "--wait", "--json", "--retries", "3", "--retry-delay", "1"),
        *("-c", f"echo forbidden >> {site.marks_file}"),
    )

    assert waited.returncode == 125
    assert "forbidden" in waited.stdout + waited.stderr
    task_id = json.loads(waited.stdout)["id"]
    _is_refused(site, task_id, "blocked pattern 'forbidden'")
    assert site.task(task_id)["retry_count"] == 0
    assert not site.marks_file.exists()


def test_scenario_12_a_policy_that_changed_holds_for_tasks_that_were_claimed_before(
    site: Site,
) -> None:
    site.start_server(**POLLED)
    agent = site.start_agent(agent__max_workers=1)
    gate = site.gate()
    runs = site.submit_marked(gate.wait)
    site.wait(runs, "running")
    waits = site.submit_marked("echo forbidden")
    wait_for(lambda: site.file().status(waits) == "assigned", "its start is stored ahead")
    agent.kill()
    stored = site.file().task(waits)["start_id"]
    assert stored

    site.start_agent(agent__max_workers=1, command_policy__blocked_patterns='["forbidden"]')
    gate.open()

    assert site.wait(runs)["status"] == "completed"  # it had begun: it is judged no more
    _is_refused(site, waits, "blocked pattern 'forbidden'", stored)
    assert site.marks("begin", waits) == []
