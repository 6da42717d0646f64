"""Scenarios 3 and 4: results wait while the server is away, and arrive by themselves."""

import re

from tests.end_to_end.site import POLLED, Site, wait_for


def _ended_while_away(site: Site, url: str) -> list[str]:
    """Three tasks that end without a server: one had begun before, two begin without it."""
    server = site.start_server(**POLLED)
    site.start_agent(agent__max_workers=1, server_client__url=url)
    gate = site.gate()
    tasks = [
        site.submit_marked(f"{gate.wait}; echo result {number}; exit {number}")
        for number in range(3)
    ]
    site.wait(tasks[0], "running")
    for task_id in tasks[1:]:
        site.holds(task_id)  # claimed ahead; it waits for the only slot
    site.told()
    server.kill()
    gate.open()
    for task_id, status in zip(tasks, ["completed", "failed", "failed"], strict=True):
        wait_for(
            lambda task_id=task_id, status=status: site.file().status(task_id) == status,
            f"task {task_id} is {status} on the agent",
        )
    return tasks


def test_scenario_3_results_wait_locally_while_the_server_is_away_and_survive_a_restart(
    site: Site,
) -> None:
    tasks = _ended_while_away(site, site.url)
    agent = site.agents["one"]
    agent.says("the server is unreachable")
    waiting = [["complete"], ["start", "complete"], ["start", "complete"]]

    assert [site.file().unsent(task_id) for task_id in tasks] == waiting
    agent.kill()
    again = site.start_agent(agent__max_workers=1)
    again.says("the server is unreachable")
    assert [site.file().unsent(task_id) for task_id in tasks] == waiting
    assert again.stop() == 0
    assert [site.file().unsent(task_id) for task_id in tasks] == waiting
    assert [site.file().task(task_id)["stdout"] for task_id in tasks] == [
        f"result {number}\n".encode() for number in range(3)
    ]
    assert site.file().dead_letters() == []


def test_scenario_4_the_server_is_back_and_every_result_arrives_in_order_and_once(
    site: Site,
) -> None:
    relay = site.relay()
    tasks = _ended_while_away(site, relay.url)
    before = len(relay.calls)

    site.start_server()
    ended = [site.wait(task_id) for task_id in tasks]

    assert [task["exit_code"] for task in ended] == [0, 1, 2]
    assert [task["stdout"] for task in ended] == [f"result {number}\n" for number in range(3)]
    wait_for(lambda: site.file().unsent() == [], "nothing waits any more")
    told = [re.fullmatch(r"tasks/(.+)/(start|complete)", call) for call in relay.calls[before:]]
    assert [[match[2] for match in told if match and match[1] == task_id] for task_id in tasks] == [
        ["complete"],
        ["start", "complete"],
        ["start", "complete"],
    ]
    assert [mark.run_no for mark in site.marks("begin")] == [1, 1, 1]
    assert [len(task["runs"]) for task in ended] == [1, 1, 1]
    assert site.file().dead_letters() == []


def test_scenario_4_nothing_is_told_before_the_agent_is_registered_again(site: Site) -> None:
    site.start_server()
    relay = site.relay()
    agent = site.start_agent(server_client__url=relay.url)
    gate = site.gate()
    task_id = site.submit_marked(f"{gate.wait}; kill -9 $$")
    site.wait(task_id, "running")
    agent.kill()
    gate.open()
    lost: list[str] = []

    def lose_the_first_registrations(when: str, call: str) -> bool | None:
        if (when, call) != ("asked", "register") or len(lost) == 2:
            return None
        lost.append(call)
        return False

    relay.watch = lose_the_first_registrations
    relay.calls.clear()
    site.start_agent(server_client__url=relay.url)
    task = site.wait(task_id)

    # Told to a server that is not known yet, the end would be a plain exit code.
    assert (task["status"], task["reason"], task["signal"]) == ("failed", "signal", "SIGKILL")
    assert len(lost) == 2
    told = [call for call in relay.calls if call == "register" or call.endswith("/complete")]
    assert told[0] == "register"
