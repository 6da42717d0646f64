"""docs/trouble.md, "While it runs, and stopping": disks that fill up, Ctrl-C once and twice."""

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent_core.testing.http_server import ScriptedServer, answer
from tests.end_to_end.records import AgentFile, processes_of
from tests.end_to_end.site import POLLED, Process, Site, wait_for
from tests.end_to_end.trouble import Disk, Row, server_env, small_disk


def test_ctrl_c_ends_an_agent_gently(site: Site, row: Row) -> None:
    site.start_server(**POLLED)
    agent = site.start_agent(agent__max_workers=1)
    runs = site.submit("sleep 600")
    site.wait(runs, "running")
    waits = site.submit("true")
    site.holds(waits)

    agent.signal(signal.SIGINT)

    row.ended_with(agent.popen.wait(60), agent.text)
    assert site.task(waits)["status"] == "pending"
    assert site.task(runs)["status"] == "running"
    assert processes_of(runs) != []


def test_a_second_ctrl_c_ends_an_agent_at_once(site: Site, row: Row) -> None:
    server = site.start_server()
    agent = site.start_agent(agent__max_workers=1, shutdown__grace=3600)
    gate = site.gate()
    task_id = site.submit(gate.wait)
    site.wait(task_id, "running")
    site.told()
    server.kill()
    gate.open()
    wait_for(lambda: site.file().unsent(task_id) == ["complete"], "the result waits")
    agent.signal(signal.SIGINT)
    agent.says("stopping")
    assert agent.alive

    agent.signal(signal.SIGINT)

    row.ended_with(agent.popen.wait(60), agent.text)
    assert site.file().unsent(task_id) == ["complete"]


async def test_ctrl_c_ends_a_client_that_waits(site: Site, row: Row) -> None:
    async with ScriptedServer() as scripted:
        scripted.on("/api/v1/tasks/*", answer({"id": "t-1", "status": "running"}))
        env = {"REMOTEGPU_URL": scripted.url, "REMOTEGPU_TOKEN": site.user_token}
        waiting = Process(["wait", "t-1"], env, site.root / "wait.log")
        await scripted.wait_for("/api/v1/tasks/*", 2)

        waiting.signal(signal.SIGINT)

        row.ended_with(await asyncio.to_thread(waiting.popen.wait, 60), waiting.text)
        assert {request.method for request in scripted.requests} == {"GET"}


def test_the_disk_of_a_running_agent_fills_up(site: Site, row: Row) -> None:
    site.start_server(**POLLED)
    with small_disk(site.root / "disk", "3m") as disk:
        env = site.agent_env(
            agent__state_dir=disk.inside / "agent",
            agent__max_workers=1,
            server_client__renew_interval=0.3,
        )
        agent = site.agents["one"] = Process(
            ["agent"], env, site.root / "agent-one.log", enter=disk.enter
        )
        gate = site.gate()
        runs = site.submit_marked(f"{gate.wait}; echo no room")
        site.wait(runs, "running")
        waits = [site.submit_marked("echo kept, too") for _ in range(2)]
        for task_id in waits:  # its file cannot be read from here; what it renews it has stored
            lease = site.wait(task_id, "assigned")["lease_expires_at"]
            wait_for(
                lambda task_id=task_id, lease=lease: site.task(task_id)["lease_expires_at"] > lease,
                "the agent holds it",
            )

        disk.fill()
        later = [site.submit_marked(f"echo later {n}") for n in range(3)]
        gate.open()
        wait_for(lambda: site.marks("end", runs), "the task ends on a full disk")
        wait_for(lambda: row.says(agent.text), f"{row.quotes} in\n{agent.text}")
        assert agent.alive
        row.went_on(agent.text)
        disk.empty()

        for task_id in (runs, *waits, *later):
            assert site.wait(task_id)["status"] == "completed"
        ended = site.task(runs)
        assert (ended["exit_code"], ended["truncated"]["stdout"]) == (0, len("no room\n"))
        began = [mark.task_id for mark in site.marks("begin")]
        assert sorted(began) == sorted([runs, *waits, *later])  # each of them once
        assert agent.stop() == 0
        # SQLite would look for the disk's real name, which is none in this process.
        kept = shutil.copy(disk.path / "agent" / "agent.db", site.root / "copy.db")
        assert AgentFile(Path(kept)).unsent() == []


@contextlib.contextmanager
def _server_on_a_full_disk(site: Site) -> Iterator[tuple[Disk, Mapping[str, str], list[str]]]:
    """The disk, the server's environment, and the tasks that it accepted."""
    with small_disk(site.root / "disk", "3m") as disk:
        env = server_env(site, database=f"sqlite:///{disk.inside}/server.db")
        site.server = Process(["server"], env, site.root / "server.log", enter=disk.enter)
        site.server.says("listening")
        accepted = [site.submit("true")]
        disk.fill()
        yield disk, env, accepted


def _submit_until_refused(site: Site, accepted: list[str]) -> tuple[int, dict[str, Any]]:
    big = {"command": "true", "env": {"FILLER": "x" * 100_000}}
    for _ in range(200):  # what the log has taken already is room, too
        status, said = site.call("POST", "/api/v1/tasks", big)
        if status != 201:
            return status, said
        accepted.append(said["data"]["id"])
    raise AssertionError("the disk is not full")


def test_a_disk_that_fills_up_is_told_to_whoever_asks(site: Site, row: Row) -> None:
    with _server_on_a_full_disk(site) as (_, _, accepted):
        status, said = _submit_until_refused(site, accepted)

        assert status == 503
        row.went_on(said["message"])
        assert [site.task(task_id)["id"] for task_id in accepted] == accepted


def test_the_disk_of_a_running_server_fills_up(site: Site, row: Row) -> None:
    with _server_on_a_full_disk(site) as (disk, env, accepted):
        _submit_until_refused(site, accepted)
        disk.empty()
        accepted.append(site.submit("true"))

        assert site.server is not None
        row.went_on(site.server.text)
        site.server.kill()
        site.server = Process(["server"], env, site.root / "server.log", enter=disk.enter)
        site.server.says("listening")
        assert [site.task(task_id)["id"] for task_id in accepted] == accepted
