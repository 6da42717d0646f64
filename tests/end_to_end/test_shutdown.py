"""Scenario 18: an agent that is asked to leave, and one that is asked twice."""

import signal

from tests.end_to_end.records import processes_of
from tests.end_to_end.site import POLLED, Site, wait_for


def test_scenario_18_a_graceful_end_hands_over_what_runs_and_gives_back_what_waits(
    site: Site,
) -> None:
    site.start_server(**POLLED)
    agent = site.start_agent(agent__max_workers=1)
    gate = site.gate()
    runs = site.submit_marked(f"{gate.wait}; echo outlived it")
    site.wait(runs, "running")
    waiting = [site.submit_marked("true") for _ in range(2)]
    for task_id in waiting:
        site.holds(task_id)

    assert agent.stop() == 0

    assert [site.task(task_id)["status"] for task_id in waiting] == ["pending", "pending"]
    assert site.task(runs)["status"] == "running"
    assert processes_of(runs) != []
    site.start_agent("two")
    assert [site.wait(task_id)["status"] for task_id in waiting] == ["completed", "completed"]
    gate.open()
    wait_for(lambda: site.marks("end", runs), "the run ends without an agent")
    assert site.task(runs)["status"] == "running"
    site.start_agent(agent__max_workers=1)
    task = site.wait(runs)
    assert (task["status"], task["stdout"]) == ("completed", "outlived it\n")
    assert sorted(mark.task_id for mark in site.marks("begin")) == sorted([runs, *waiting])


def test_scenario_18_results_are_sent_before_it_leaves_and_no_task_is_claimed_any_more(
    site: Site,
) -> None:
    server = site.start_server()
    agent = site.start_agent(agent__max_workers=1, shutdown__grace=600)
    gate = site.gate()
    ends = site.submit_marked(f"{gate.wait}; echo told")
    site.wait(ends, "running")
    site.told()
    server.kill()
    gate.open()
    wait_for(lambda: site.file().unsent(ends) == ["complete"], "the result waits")
    agent.says("the server is unreachable")

    agent.signal(signal.SIGTERM)
    agent.says("stopping; once more to leave at once")
    site.start_server()
    later = site.submit_marked("true")
    assert agent.popen.wait(120) == 0

    assert site.task(ends)["stdout"] == "told\n"
    assert site.file().unsent() == []
    assert site.task(later)["status"] == "pending"


def test_scenario_18_the_grace_bounds_it_and_what_was_not_sent_is_kept(site: Site) -> None:
    server = site.start_server()
    agent = site.start_agent(agent__max_workers=1, shutdown__grace=1)
    gate = site.gate()
    ends = site.submit_marked(f"{gate.wait}; echo kept")
    site.wait(ends, "running")
    site.told()
    server.kill()
    gate.open()
    wait_for(lambda: site.file().unsent(ends) == ["complete"], "the result waits")

    assert agent.stop() == 0

    assert "it is kept for the next start" in agent.text
    assert site.file().unsent(ends) == ["complete"]
    site.start_server()
    site.start_agent()
    assert site.wait(ends)["stdout"] == "kept\n"
    assert len(site.marks("begin", ends)) == 1


def test_scenario_18_a_second_signal_is_quicker_and_loses_nothing(site: Site) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        server = site.start_server(**POLLED)
        agent = site.start_agent(agent__max_workers=1, shutdown__grace=3600)
        gate = site.gate(f"gate-{signum}")
        runs = site.submit_marked("sleep 600")
        ends = site.submit_marked(f"{gate.wait}")
        site.wait(runs, "running")
        site.holds(ends)
        server.kill()
        agent.signal(signum)
        agent.says("stopping; once more to leave at once")
        wait_for(lambda: site.file().unsent(ends) == ["release"], "it is given back")  # noqa: B023
        assert agent.alive  # its word that a task is given back cannot be told

        agent.signal(signum)

        assert agent.popen.wait(60) == 0
        assert processes_of(runs) != []
        assert site.file().status(runs) == "running"
        assert site.file().unsent(ends) == ["release"]
        gate.open()
        site.start_server()
        again = site.start_agent(agent__max_workers=2, server_client__renew_interval=0.3)
        assert site.wait(ends)["status"] == "completed"
        site.cli("cancel", runs)
        assert site.wait(runs)["status"] == "cancelled"
        assert again.stop() == 0
        assert len(site.marks("begin", ends)) == 1
        assert len(site.marks("begin", runs)) == 1
        site.server.kill()  # type: ignore[union-attr]


def test_scenario_18_an_idle_agent_leaves_without_waiting(site: Site) -> None:
    site.start_server()
    agent = site.start_agent(shutdown__grace=3600)
    site.wait(site.submit("true"))

    assert agent.stop() == 0

    assert "leaving before everything was told" not in agent.text
