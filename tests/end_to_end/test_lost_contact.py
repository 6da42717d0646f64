"""Scenario 21: the server is away, or the machine cut off, for a while or for too long."""

from tests.end_to_end.records import marking, processes_of
from tests.end_to_end.site import POLLED, Site, wait_for


def _running_on_one(site: Site, body: str, **terms: object) -> str:
    """A task that runs on agent one, behind a relay, while agent two has nothing to do."""
    site.start_server(**terms)
    relay = site.relay()
    site.start_agent("one", server_client__url=relay.url)
    task_id = site.submit_marked(body)
    site.wait(task_id, "running")
    site.start_agent("two")
    site.agents["two"].says("ready")
    return task_id


def test_scenario_21_cut_off_longer_than_the_lease_it_runs_on_and_goes_to_nobody_else(
    site: Site,
) -> None:
    gate = site.gate()
    task_id = _running_on_one(
        site, f"{gate.wait}; echo all alone", lease_sec=1, disconnect_grace=3600
    )
    first = site.task(task_id)
    [relay] = site.relays

    relay.cut()
    wait_for(lambda: site.task(task_id)["unreachable_since"], "its lease is over")
    other = site.submit_marked("true")  # agent two goes on claiming
    assert site.wait(other)["assigned_agent_id"] != first["assigned_agent_id"]
    assert processes_of(task_id) != []
    gate.open()
    wait_for(lambda: site.file().status(task_id) == "completed", "it ends while cut off")
    assert site.task(task_id)["status"] == "running"
    relay.mend()

    task = site.wait(task_id)
    assert (task["status"], task["stdout"]) == ("completed", "all alone\n")
    assert task["attempt_id"] == first["attempt_id"]
    assert len(task["runs"]) == 1
    assert len(site.marks("begin", task_id)) == 1


def test_scenario_21_back_before_the_grace_is_over_its_lease_is_revived(site: Site) -> None:
    gate = site.gate()
    task_id = _running_on_one(site, gate.wait, lease_sec=1, disconnect_grace=3600)
    [relay] = site.relays

    relay.cut()
    wait_for(lambda: site.task(task_id)["unreachable_since"], "its lease is over")
    relay.mend()
    wait_for(lambda: site.task(task_id)["unreachable_since"] is None, "its lease is revived")
    gate.open()

    assert site.wait(task_id)["status"] == "completed"
    assert len(site.marks("begin", task_id)) == 1


def test_scenario_21_a_server_that_was_away_longer_than_the_lease_takes_the_end(
    site: Site,
) -> None:
    gate = site.gate()
    task_id = _running_on_one(site, gate.wait, lease_sec=1, disconnect_grace=3600)
    attempt = site.task(task_id)["attempt_id"]
    assert site.server
    site.server.kill()
    for agent in site.agents.values():
        agent.says("the server is unreachable")
    gate.open()
    wait_for(lambda: site.file().status(task_id) == "completed", "it ends meanwhile")

    site.start_server(lease_sec=1, disconnect_grace=3600)
    task = site.wait(task_id)

    assert (task["status"], task["attempt_id"]) == ("completed", attempt)
    assert len(site.marks("begin", task_id)) == 1


def test_scenario_21_cut_off_longer_than_the_grace_it_is_granted_anew_and_the_first_run_stopped(
    site: Site,
) -> None:
    gate = site.gate()
    task_id = _running_on_one(
        site, f"{gate.wait}; echo attempt $REMOTEGPU_ATTEMPT_ID", lease_sec=2, disconnect_grace=1
    )
    first = site.task(task_id)
    [relay] = site.relays

    relay.cut()
    wait_for(lambda: len(site.marks("begin", task_id)) == 2, "it runs elsewhere")
    both = processes_of(task_id)
    assert site.file("one").status(task_id) == "running"  # it has not heard of it
    relay.mend()
    wait_for(lambda: site.file("one").status(task_id) == "cancelled", "the first run is stopped")
    wait_for(lambda: site.file("one").unsent() == [], "what became of it is nobody's news")

    left = processes_of(task_id)
    assert 0 < len(left) < len(both)
    attempts = {site.file(name).task(task_id)["attempt_id"] for name in ("one", "two")}
    assert len(attempts) == 2
    assert site.task(task_id)["status"] == "running"
    gate.open()
    task = site.wait(task_id)
    assert task["status"] == "completed"
    assert task["attempt_id"] in attempts - {first["attempt_id"]}
    assert task["stdout"] == f"attempt {task['attempt_id']}\n"
    assert processes_of(task_id) == []
    assert site.file("one").dead_letters() == []


def test_scenario_21_an_agent_that_is_granted_its_own_task_anew_ends_the_first_run_before(
    site: Site,
) -> None:
    body = f"until [ -e {site.root}/$REMOTEGPU_ATTEMPT_ID ]; do sleep 0.05; done"
    command = f"trap '' TERM\n{marking(site.marks_file, body)}"
    site.start_server(lease_sec=3, disconnect_grace=3600)
    relay = site.relay()
    agent = site.start_agent(server_client__url=relay.url, subprocess_executor__grace=600)
    task_id = site.submit(command, disconnect_grace=0)
    site.wait(task_id, "running")

    relay.cut()
    site.wait(task_id, "pending")  # lease and grace are over
    first = site.file().task(task_id)["attempt_id"]
    begun = len(site.marks("begin", task_id))
    again = {"command": command}
    assert site.call("PUT", f"/api/v1/tasks/{task_id}", again)[0] == 200  # nobody's any more
    relay.mend()
    agent.says("an older attempt at it is still here")
    second = site.task(task_id)
    assert second["status"] == "assigned"
    assert len(site.marks("begin", task_id)) == begun
    assert processes_of(task_id) != []
    (site.root / first).touch()
    site.wait(task_id, "running")
    wait_for(lambda: site.file().unsent() == [], "what became of the first run is told, and stale")

    assert len(site.marks("begin", task_id)) == begun + 1
    assert site.task(task_id)["status"] == "running"
    (site.root / second["attempt_id"]).touch()
    task = site.wait(task_id)
    assert (task["status"], task["attempt_id"]) == ("completed", second["attempt_id"])
    [ended] = site.file().rows("SELECT attempt_id FROM tasks WHERE status = 'cancelled'")
    assert ended["attempt_id"] == first


def test_scenario_21_back_after_the_grace_an_agent_keeps_its_run_where_nobody_else_has_asked(
    site: Site,
) -> None:
    """Its renewal comes before its claim, which would be granted the very task that it runs."""
    site.start_server(lease_sec=3, disconnect_grace=0)
    relay = site.relay()
    agent = site.start_agent(server_client__url=relay.url, server_client__poll_interval=0.05)
    gate = site.gate()
    task_id = site.submit_marked(gate.wait)
    site.wait(task_id, "running")
    relay.cut()
    agent.says("the server is unreachable")
    site.wait(task_id, "pending")  # lease and grace are over
    first = site.file().task(task_id)["attempt_id"]
    assert site.server
    site.server.kill()
    site.start_server(lease_sec=3, disconnect_grace=3600)
    begun = len(site.marks("begin", task_id))
    lost: list[str] = []

    def lose(when: str, call: str) -> bool | None:
        if when == "answered" or not call.endswith("lease/renew") or len(lost) == 3:
            return None
        lost.append(call)
        return False

    relay.watch = lose  # every other call gets through
    relay.mend()
    site.wait(task_id, "running")
    gate.open()

    task = site.wait(task_id)
    assert (task["status"], task["attempt_id"]) == ("completed", first)
    assert len(site.marks("begin", task_id)) == begun
    assert len(lost) == 3


def test_scenario_21_no_run_begins_after_its_lease_has_ended(site: Site) -> None:
    site.start_server(lease_sec=1, disconnect_grace=3600, **POLLED)
    relay = site.relay()
    agent = site.start_agent(agent__max_workers=1, server_client__url=relay.url)
    gate = site.gate()
    runs = site.submit_marked(gate.wait)
    site.wait(runs, "running")
    waits = site.submit_marked("true")
    site.holds(waits)

    relay.cut()
    wait_for(lambda: site.task(waits)["unreachable_since"], "its lease is over")
    gate.open()
    agent.says("its lease is over, waiting for a renewal")
    assert site.marks("begin", waits) == []
    relay.mend()

    assert site.wait(waits)["status"] == "completed"
    assert site.wait(runs)["status"] == "completed"


def test_scenario_21_work_that_must_not_overlap_has_ended_before_anybody_else_begins(
    site: Site,
) -> None:
    """Cut off from its server, the first agent ends the run in time, and keeps the task."""
    gate = site.gate()
    body = f"trap 'echo stopped >> stopped; exit 1' TERM; {gate.wait}"
    site.start_server(lease_sec=2, disconnect_grace=8)
    relay = site.relay()
    site.start_agent("one", server_client__url=relay.url, subprocess_executor__grace=1)
    task_id = site.submit_marked(body, on_lost_contact="stop")
    site.wait(task_id, "running")
    first = processes_of(task_id)
    site.start_agent("two")
    site.agents["two"].says("ready")

    relay.cut()
    wait_for(lambda: len(site.marks("begin", task_id)) == 2, "it runs elsewhere")
    assert not set(first) & set(processes_of(task_id)), "the first run had ended by then"
    assert site.file("one").status(task_id) == "pending", "its agent waits for word of the lease"
    gate.open()
    relay.mend()

    assert site.wait(task_id)["status"] == "completed"
    wait_for(lambda: site.file("one").status(task_id) == "cancelled", "the first attempt is over")
    assert len(site.marks("begin", task_id)) == 2


def test_scenario_21_work_that_must_not_overlap_runs_on_while_there_is_contact(site: Site) -> None:
    """Also under a lease and a grace that are shorter than the task, and over a restart."""
    gate = site.gate()
    site.start_server(lease_sec=2, disconnect_grace=5)
    agent = site.start_agent(subprocess_executor__grace=1)
    task_id = site.submit_marked(gate.wait, on_lost_contact="stop")
    site.wait(task_id, "running")
    granted = site.task(task_id)["lease_expires_at"]
    wait_for(lambda: site.task(task_id)["lease_expires_at"] > granted, "it is renewed", 30)
    agent.kill()
    site.start_agent(subprocess_executor__grace=1)
    held = site.task(task_id)["lease_expires_at"]
    wait_for(lambda: site.task(task_id)["lease_expires_at"] > held, "it is renewed again", 30)
    gate.open()

    assert site.wait(task_id)["status"] == "completed"
    assert len(site.marks("begin", task_id)) == 1
