"""Scenario 20: the same report, the same claim and the same submit twice have one effect."""

from typing import Any

from tests.end_to_end.site import Site

HEADERS = {"X-Agent-Protocol": "1"}


def agent(site: Site, path: str, **fields: Any) -> dict[str, Any]:
    body = {"agent_id": "by-hand", "machine_id": "by-hand", **fields}
    _, answer = site.call(
        "POST", f"/api/v1/agent/{path}", body, token=site.agent_token, headers=HEADERS
    )
    return answer


def restart(site: Site) -> None:
    assert site.server
    site.server.kill()
    site.start_server()


def test_scenario_20_the_same_claim_twice_brings_the_same_task_also_after_a_restart_of_the_server(
    site: Site,
) -> None:
    site.start_server()
    tasks = {site.submit("true") for _ in range(3)}
    agent(site, "register", max_workers=2)
    first = agent(site, "tasks/claim", limit=2, request_id="s:1")["data"]["tasks"]
    restart(site)
    again = agent(site, "tasks/claim", limit=2, request_id="s:1")["data"]["tasks"]
    assert [(t["id"], t["attempt_id"]) for t in first] == [
        (t["id"], t["attempt_id"]) for t in again
    ]
    other = agent(site, "tasks/claim", limit=2, request_id="s:2")["data"]["tasks"]
    assert {task["id"] for task in (*first, *other)} == tasks
    assert len(first) == 2


def test_scenario_20_the_same_report_twice_changes_nothing(site: Site) -> None:
    site.start_server()
    task_id = site.submit("true", max_retries=3)
    words = agent(site, "register", max_workers=2)["data"]["capabilities"]
    [task] = agent(site, "tasks/claim", limit=1, request_id="s:1")["data"]["tasks"]
    of = {"task_id": task_id, "attempt_id": task["attempt_id"], "run_no": 1}
    at = "2026-01-01T00:00:00Z"
    end = {"exit_code": 3, "status": "failed", "reason": "exited", "stdout": "once\n"}
    events = [
        {"seq": 1, "kind": "start", "at": at, "started_at": at, **of},
        {"seq": 2, "kind": "complete", "at": at, **of, **end},
    ]
    assert "events" in words
    told = agent(site, "events", stream="s", events=events)["data"]["results"]
    assert [each["code"] for each in told] == [0, 0]
    before = site.task(task_id)
    restart(site)
    for repeat in (events, events[1:], events[:1], list(reversed(events))):
        told = agent(site, "events", stream="s", events=repeat)["data"]["results"]
        assert {each["code"] for each in told} == {0}
        assert site.task(task_id) == before
    single = agent(site, f"tasks/{task_id}/complete", attempt_id=task["attempt_id"], exit_code=0)
    assert single["code"] == 0
    assert site.task(task_id) == before


def test_scenario_20_the_same_submit_twice_makes_one_task_also_after_a_restart_of_the_server(
    site: Site,
) -> None:
    site.start_server()
    key = {"Idempotency-Key": "the-same"}
    body = {"command": "true"}
    status, first = site.call("POST", "/api/v1/tasks", body, headers=key)
    restart(site)
    assert site.call("POST", "/api/v1/tasks", body, headers=key) == (status, first)
    _, page = site.call("GET", "/api/v1/tasks")
    assert [task["id"] for task in page["data"]["tasks"]] == [first["data"]["id"]]
    status, other = site.call("POST", "/api/v1/tasks", {"command": "false"}, headers=key)
    assert (status, other["code"]) == (409, 30014)
