"""docs/trouble.md, "The way to the server": away, refusing, or answering what is no answer."""

import asyncio
import json

import pytest

from agent_core.testing.http_server import Reply, ScriptedServer, as_json
from tests.end_to_end.site import Process, Site, wait_for
from tests.end_to_end.trouble import Row, client

PAGE = b"<html><h1>Bad Gateway</h1></html>"
NO_JSON = Reply(body=b"hello", headers={"Content-Type": "text/plain"})
CUT_OFF = Reply(body=b'{"code": 0, "mess', length=500, close=True)
BAD_GATEWAY = Reply(status=502, body=PAGE, headers={"Content-Type": "text/html"})


def _told(site: Site, agent: Process, row: Row) -> None:
    """The agent says it, and is still there."""
    wait_for(lambda: row.says(agent.text), f"{row.quotes} in\n{agent.text}")
    assert agent.alive
    row.went_on(agent.text)


def test_an_agent_whose_server_is_not_there_when_it_starts(site: Site, row: Row) -> None:
    agent = site.start_agent()
    agent.says("the server is unreachable")

    site.start_server()
    assert site.wait(site.submit("true"))["status"] == "completed"

    _told(site, agent, row)


def test_an_agent_whose_server_goes_away(site: Site, row: Row) -> None:
    server = site.start_server()
    agent = site.start_agent(agent__max_workers=1)
    gate = site.gate()
    task_id = site.submit_marked(f"{gate.wait}; echo kept")
    site.wait(task_id, "running")
    site.told()

    server.kill()
    agent.says("the server is unreachable")
    gate.open()
    wait_for(lambda: site.file().unsent(task_id) == ["complete"], "its result waits")
    site.start_server()

    assert site.wait(task_id)["stdout"] == "kept\n"
    _told(site, agent, row)


def test_an_agent_whose_server_is_away_for_longer_than_a_lease(site: Site, row: Row) -> None:
    site.start_server(lease_sec=1, disconnect_grace=0)
    relay = site.relay()
    gate = site.gate()
    agent = site.start_agent(server_client__url=relay.url, server_client__renew_interval=0.3)
    task_id = site.submit_marked(f"if mkdir {site.root}/once; then {gate.wait}; fi")
    first = site.wait(task_id, "running")

    relay.cut()
    site.start_agent("two")
    again = site.wait(task_id)
    assert again["status"] == "completed"
    assert again["assigned_agent_id"] != first["assigned_agent_id"]
    relay.mend()

    _told(site, agent, row)
    wait_for(lambda: site.file().status(task_id) == "cancelled", "the old run is stopped")
    assert site.task(task_id)["attempt_id"] == again["attempt_id"]


async def _agent_meets(site: Site, reply: Reply, row: Row) -> None:
    async with ScriptedServer() as scripted:
        for call in ("register", "heartbeat", "tasks/claim"):
            scripted.on(f"/api/v1/agent/{call}", reply)
        agent = site.start_agent(server_client__url=scripted.url)
        await asyncio.to_thread(_told, site, agent, row)


async def test_an_agent_whose_server_answers_no_json(site: Site, row: Row) -> None:
    await _agent_meets(site, NO_JSON, row)


async def test_an_agent_whose_servers_answer_is_cut_off(site: Site, row: Row) -> None:
    await _agent_meets(site, CUT_OFF, row)


async def test_an_agent_that_meets_a_proxys_error_page(site: Site, row: Row) -> None:
    await _agent_meets(site, BAD_GATEWAY, row)


@pytest.fixture(scope="module")
def house(shared_site: Site) -> Site:
    """A server that stays."""
    shared_site.start_server()
    return shared_site


def test_an_agent_with_a_wrong_token(house: Site, row: Row) -> None:
    _told(house, house.start_agent("wrong", server_client__token="wrong-token"), row)


def test_an_agent_without_a_token(house: Site, row: Row) -> None:
    _told(house, house.start_agent("without", server_client__token=""), row)


def test_a_client_with_a_wrong_token(house: Site, row: Row) -> None:
    row.ended(client(house, "tasks", token="wrong-token"))


def test_a_client_whose_server_is_not_there(site: Site, row: Row) -> None:
    row.ended(client(site, "submit", "--name", "x", "--", "true"))


async def _client_meets(reply: Reply, site: Site, row: Row) -> None:
    async with ScriptedServer() as scripted:
        scripted.on("/api/v1/*", reply)
        row.ended(await asyncio.to_thread(client, site, "tasks", url=scripted.url))


async def test_a_client_whose_server_answers_no_json(site: Site, row: Row) -> None:
    await _client_meets(NO_JSON, site, row)


async def test_a_client_whose_servers_answer_is_cut_off(site: Site, row: Row) -> None:
    await _client_meets(CUT_OFF, site, row)


async def test_a_client_that_meets_a_proxys_error_page(site: Site, row: Row) -> None:
    await _client_meets(BAD_GATEWAY, site, row)


async def test_a_client_that_waits_outlives_an_outage(site: Site, row: Row) -> None:
    async with ScriptedServer() as scripted:
        task = {"id": "t-1", "status": "running"}
        ended = {"id": "t-1", "status": "completed", "exit_code": 0}
        scripted.on(
            "/api/v1/tasks/*",
            *(as_json({"code": 0, "data": task}), BAD_GATEWAY, BAD_GATEWAY),
            as_json({"code": 0, "data": ended}),
        )
        row.ended(await asyncio.to_thread(client, site, "wait", "t-1", url=scripted.url))


async def test_a_client_that_waits_gives_up_a_server_that_never_answered(
    site: Site, row: Row
) -> None:
    row.ended(await asyncio.to_thread(client, site, "wait", "--timeout", "1s", "t-1"))


def test_json_errors_are_json(site: Site) -> None:
    done = client(site, "tasks", "--json")

    assert done.code == 5
    assert json.loads(done.text)["error"]["exit_code"] == 5
