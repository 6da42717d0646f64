"""Scenario 8: the token is right, wrong or missing."""

import urllib.error
import urllib.request

import pytest

from tests.end_to_end.site import POLLED, Site, wait_for

AGENT_CALL = "/api/v1/agent/heartbeat"
BODY = {"agent_id": "a", "machine_id": "m"}


@pytest.fixture(scope="module")
def house(shared_site: Site) -> Site:
    """A server that stays."""
    shared_site.start_server()
    return shared_site


def test_scenario_8_the_right_token_is_accepted_and_any_other_is_401(house: Site) -> None:
    status, answer = house.call("POST", AGENT_CALL, BODY, token=house.agent_token)
    assert (status, answer["code"]) == (200, 0)
    status, answer = house.call("GET", "/api/v1/tasks")
    assert (status, answer["code"]) == (200, 0)
    for token in ("wrong", house.agent_token[:-1], house.user_token):
        status, answer = house.call("POST", AGENT_CALL, BODY, token=token)
        assert (status in (401, 403), answer["code"]) == (True, 30012), token
    status, answer = house.call("GET", "/api/v1/tasks", token=house.agent_token)
    assert (status in (401, 403), answer["code"]) == (True, 30012)
    with pytest.raises(urllib.error.HTTPError) as none:
        urllib.request.urlopen(f"{house.url}/api/v1/tasks", timeout=30)
    assert none.value.code == 401
    none.value.close()


@pytest.mark.parametrize("token", ["not-the-token", ""], ids=["wrong", "missing"])
def test_scenario_8_an_agent_without_the_right_token_says_so_and_keeps_its_tasks(
    site: Site, token: str
) -> None:
    site.start_server(**POLLED)
    agent = site.start_agent(agent__max_workers=1)
    gate = site.gate()
    runs = site.submit_marked(f"{gate.wait}; echo done")
    waits = site.submit_marked("echo done too")
    site.wait(runs, "running")
    site.holds(waits)
    agent.kill()

    shut_out = site.start_agent(agent__max_workers=1, server_client__token=token)
    shut_out.says("refuses this agent's token; tasks are kept")
    gate.open()
    for task_id in (runs, waits):
        wait_for(lambda task_id=task_id: site.file().status(task_id) == "completed", "it ran")
    assert "complete" in site.file().unsent(runs)
    assert site.file().unsent(waits) == ["start", "complete"]
    assert site.task(runs)["status"] == "running"
    assert shut_out.alive
    shut_out.kill()

    site.start_agent(agent__max_workers=1)
    assert [site.wait(task_id)["stdout"] for task_id in (runs, waits)] == ["done\n", "done too\n"]
    assert [mark.run_no for mark in site.marks("begin")] == [1, 1]


def test_scenario_8_a_user_without_the_right_token_is_told_so_by_the_command(house: Site) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(house, "user_token", "nobody-knows-it")
        refused = house.cli("tasks")

    assert refused.returncode == 4
    assert "token" in refused.stderr
    assert house.cli("tasks").returncode == 0
