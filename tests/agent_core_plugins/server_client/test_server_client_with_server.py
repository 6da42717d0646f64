"""The plugin against the real control plane, on a real socket, with the extensions and without."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_control_plane.app import create_app
from agent_control_plane.db import Database
from agent_control_plane.plane import Plane
from agent_control_plane.settings import ServerSettings
from agent_core import (
    Answer,
    Demand,
    Event,
    EventKind,
    Free,
    Outcome,
    Progress,
    Reason,
    Status,
    Task,
    Unreachable,
    Usage,
    wire,
)
from agent_core.api.http import QuietServer
from agent_core.clock import SystemClock

AGENT_TOKEN, USER_TOKEN = "agent-token", "user-token"
_numbers = itertools.count(1)  # of events: what is not above the last one is a repeat


@dataclass
class Control:
    url: str
    user: httpx.AsyncClient

    async def submit(self, **fields: Any) -> str:
        response = await self.user.post("/api/v1/tasks", json={"command": "true", **fields})
        assert response.status_code == 201, response.text
        return str(response.json()["data"]["id"])

    async def look(self, task_id: str) -> dict[str, Any]:
        response = await self.user.get(f"/api/v1/tasks/{task_id}")
        return dict(response.json()["data"])

    async def cancel(self, task_id: str) -> None:
        response = await self.user.post(f"/api/v1/tasks/{task_id}/cancel", json={})
        assert response.status_code == 200, response.text


EVERYTHING = tuple(wire.Word)
SPOKEN = {
    "all": EVERYTHING,
    "none": (),
    **{f"all but {word}": tuple(w for w in EVERYTHING if w != word) for word in EVERYTHING},
}
# Each without one word costs as much as the rest together: one test goes through all of them.
any_words = pytest.mark.parametrize("words", SPOKEN)
all_words = pytest.mark.parametrize("words", ["all"])


@pytest.fixture(params=["all", "none"])
def words(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def control(tmp_path: Path, words: str) -> AsyncIterator[Control]:
    settings = ServerSettings(
        database=f"sqlite:///{tmp_path}/server.db",
        agent_token=AGENT_TOKEN,
        user_token=USER_TOKEN,
        lease_sec=120,
        extensions=SPOKEN[words],
    )
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    plane = Plane(settings, Database.open(settings.database), SystemClock())
    http = QuietServer(create_app(plane))
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    headers = {"Authorization": f"Bearer {USER_TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as user:
        yield Control(url, user)
    http.stop()
    await serving


async def claimed(site: Any, slots: int = 1) -> list[Task]:
    claim = await site.client.claim(Demand(slots=slots, free=Free(slots=slots)))
    site.agent.save(claim.tasks, claim.facts)
    return list(claim.tasks)


def event(kind: EventKind, task: Task, **fields: Any) -> Event:
    seq = next(_numbers)
    return Event(kind=kind, key=task.key, source=task.source, run_no=1, at=0.0, seq=seq, **fields)


async def told(site: Any, *events: Event) -> list[Answer]:
    return [receipt.answer for receipt in await site.client.report(events)]


@any_words
async def test_a_task_goes_from_submit_to_its_result(control: Control, opened: Any) -> None:
    task_id = await control.submit(
        command="train", args=["--epochs", "3"], env={"A": "1"}, timeout=77, priority=2, name="n"
    )
    async with opened(url=control.url, token=AGENT_TOKEN, wait=1) as site:
        (task,) = await claimed(site)
        assert (task.id, task.command, task.args) == (task_id, "train", ("--epochs", "3"))
        assert (task.env, task.timeout, task.priority, task.name) == ({"A": "1"}, 77, 2, "n")
        assert task.unreadable == ""
        assert task.lease is not None
        assert 100 < -task.lease.until.age(site.clock) <= 120
        assert (await control.look(task_id))["status"] == "assigned"

        assert await told(site, event(EventKind.START, task)) == [Answer.TAKEN]
        assert (await control.look(task_id))["status"] == "running"
        outcome = Outcome(
            reason=Reason.EXITED,
            exit_code=3,
            stdout=b"out \xff\0",
            stderr=b"err",
            dropped_stdout=5,
            usage=Usage(wall_s=1.5, user_s=0.5, system_s=0.25, max_rss_bytes=1024),
        )
        complete = event(EventKind.COMPLETE, task, outcome=outcome)
        assert await told(site, complete) == [Answer.TAKEN]
        assert await told(site, complete) == [Answer.TAKEN]  # and changes nothing
        seen = await control.look(task_id)
    assert (seen["status"], seen["exit_code"], seen["reason"]) == ("failed", 3, "exited")
    assert (seen["stdout"], seen["stderr"]) == (
        "out \ufffd\ufffd",
        "err",
    )
    assert seen["truncated"] == {"stdout": 5, "stderr": 0}
    assert seen["usage"]["max_rss_bytes"] == 1024


ENDS = [
    (Outcome(reason=Reason.EXITED, exit_code=0), "completed"),
    (Outcome(reason=Reason.REFUSED, error_code=30006, error="not allowed"), "failed"),
    (Outcome(reason=Reason.NEVER_RAN, error_code=30007, error="no such file"), "failed"),
    (Outcome(reason=Reason.TIMEOUT, exit_code=124, error_code=30011), "failed"),
    (Outcome(reason=Reason.SIGNAL, exit_code=137, signal="SIGKILL"), "failed"),
    (Outcome(reason=Reason.LOST, error_code=30008, error="lost"), "failed"),
    (Outcome(reason=Reason.CANCELLED, exit_code=143, signal="SIGTERM"), "cancelled"),
]


async def test_every_kind_of_end_is_taken_with_its_reason(control: Control, opened: Any) -> None:
    for _ in ENDS:
        await control.submit()
    async with opened(url=control.url, token=AGENT_TOKEN, wait=1) as site:
        tasks = await claimed(site, len(ENDS))
        events = [
            event(EventKind.COMPLETE, task, outcome=outcome)
            for task, (outcome, _) in zip(tasks, ENDS, strict=True)
        ]
        assert await told(site, *events) == [Answer.TAKEN] * len(ENDS)
    for task, (outcome, status) in zip(tasks, ENDS, strict=True):
        seen = await control.look(task.id)
        assert (seen["status"], seen["reason"], seen["exit_code"]) == (
            *(status, outcome.reason.value),
            outcome.exit_code,
        )
        assert (seen["error_code"] or 0) == outcome.error_code


async def test_a_claim_whose_answer_was_not_saved_brings_the_same_attempts(
    control: Control, opened: Any
) -> None:
    for _ in range(3):
        await control.submit()
    async with opened(url=control.url, token=AGENT_TOKEN, wait=1) as site:
        first = await site.client.claim(Demand(slots=2))  # and here the agent dies
        again = await site.client.claim(Demand(slots=2))
        assert [task.key for task in again.tasks] == [task.key for task in first.tasks]
        site.agent.save(again.tasks, again.facts)
        assert len(await claimed(site, 2)) == 1
        assert await claimed(site, 2) == []


@pytest.mark.parametrize("words", ["none", "all but commands"])
async def test_a_cancel_on_the_server_reaches_the_agent_by_its_renewal(
    control: Control, opened: Any
) -> None:
    task_id = await control.submit()
    async with opened(url=control.url, token=AGENT_TOKEN, wait=1, renew_interval=0.05) as site:
        (task,) = await claimed(site)
        await told(site, event(EventKind.START, task))
        site.agent.add(replace(task, status=Status.RUNNING, run_no=1))
        await control.cancel(task_id)
        await site.agent.until(lambda: site.agent.cancelled)
        assert site.agent.cancelled == [(task.key, 30002, "cancelled on the server")]
        outcome = Outcome(reason=Reason.CANCELLED, exit_code=143, stdout=b"last words")
        assert await told(site, event(EventKind.COMPLETE, task, outcome=outcome)) == [Answer.TAKEN]
    seen = await control.look(task_id)
    assert (seen["status"], seen["stdout"]) == ("cancelled", "last words")


@all_words
async def test_a_claim_that_waits_is_answered_when_there_is_work(
    control: Control, opened: Any
) -> None:
    async with opened(url=control.url, token=AGENT_TOKEN, wait=30) as site:
        hanging = asyncio.create_task(claimed(site))
        done, _ = await asyncio.wait({hanging}, timeout=0.2)
        assert not done
        task_id = await control.submit()
        (task,) = await asyncio.wait_for(hanging, 10)
        assert task.id == task_id
        assert site.agent.facts == {"claim_no": "1"}


@all_words
async def test_an_agent_that_stops_leaves_no_claim_behind(control: Control, opened: Any) -> None:
    async with opened(url=control.url, token=AGENT_TOKEN, wait=30) as site:
        hanging = asyncio.create_task(claimed(site))
        await asyncio.wait({hanging}, timeout=0.2)
        site.agent.stopping.set()
        assert await asyncio.wait_for(hanging, 10) == []
        task_id = await control.submit()
        assert (await control.look(task_id))["status"] == "pending"


@all_words
async def test_a_cancel_reaches_an_agent_whose_claim_waits_and_is_answered(
    control: Control, opened: Any
) -> None:
    task_id = await control.submit()
    async with opened(url=control.url, token=AGENT_TOKEN, wait=30) as site:
        (task,) = await claimed(site)
        site.agent.known[task.key] = replace(task, status=Status.RUNNING, run_no=1)
        await told(site, event(EventKind.START, task))
        hanging = asyncio.create_task(claimed(site))
        await asyncio.wait({hanging}, timeout=0.2)
        response = await control.user.post(
            f"/api/v1/tasks/{task_id}/cancel", json={"reason": "too slow"}
        )
        assert response.status_code == 200
        await asyncio.wait_for(site.agent.until(lambda: site.agent.cancelled), 10)
        assert site.agent.cancelled == [(task.key, 30002, "cancelled by a user: too slow")]
        assert not hanging.done()  # it waits on
        await told(site, event(EventKind.COMPLETE, task, outcome=Outcome(reason=Reason.CANCELLED)))
        assert (await control.look(task_id))["status"] == "cancelled"
        site.agent.stopping.set()
        await hanging


@all_words
async def test_output_is_there_while_the_run_goes_on_and_the_same_when_it_has_ended(
    control: Control, opened: Any
) -> None:
    task_id = await control.submit()

    async def printed(wait_sec: int = 10, offset: int = 0) -> tuple[str, bool]:
        query = {"stream": "stdout", "offset": offset, "wait_sec": wait_sec}
        response = await control.user.get(f"/api/v1/tasks/{task_id}/logs", params=query)
        data = response.json()["data"]
        return data["data"], data["eof"]

    async with opened(url=control.url, token=AGENT_TOKEN, wait=0) as site:
        (task,) = await claimed(site)
        await told(site, event(EventKind.START, task))
        site.agent.known[task.key] = replace(task, status=Status.RUNNING, run_no=1)
        site.agent.printed[task.key, "stdout"] = b"one\n"
        reading = asyncio.create_task(printed())
        await asyncio.wait({reading}, timeout=0.2)  # somebody watches by now
        await site.client._contact._heartbeat(site.agent)  # which brings the word of it
        assert await asyncio.wait_for(reading, 10) == ("one\n", False)
        reading = asyncio.create_task(printed(offset=4))
        site.agent.printed[task.key, "stdout"] = b"one\ntwo\n"
        assert await asyncio.wait_for(reading, 10) == ("two\n", False)
        outcome = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"one\ntwo\nthree\n")
        await told(site, event(EventKind.COMPLETE, task, outcome=outcome))
        assert (await printed(offset=4))[0] == "two\nthree\n"
        assert (await control.look(task_id))["stdout"] == "one\ntwo\nthree\n"


async def test_renew_and_progress_are_taken(control: Control, opened: Any) -> None:
    await control.submit()
    async with opened(url=control.url, token=AGENT_TOKEN, wait=1) as site:
        (task,) = await claimed(site)
        await told(site, event(EventKind.START, task))
        assert await site.client._leases.renew(site.agent, task.key) == 0
        ((key, lease),) = site.agent.renewals
        assert key == task.key
        assert 100 < -lease.until.age(site.clock) <= 120
        await site.client._progress._tell(
            site.agent, task.key, Progress(percent=None, message="é" * 600)
        )
        await site.client._progress._tell(site.agent, task.key, Progress(percent=7, message="a\0"))
        assert site.agent.cancelled == []
        assert site.said("warning") == []


async def test_what_is_given_back_can_be_claimed_at_once(control: Control, opened: Any) -> None:
    task_id = await control.submit()
    async with opened(url=control.url, token=AGENT_TOKEN, wait=1) as site:
        (task,) = await claimed(site)
        given = Outcome(reason=Reason.RELEASED, error="given back: the agent stops")
        assert await told(site, event(EventKind.RELEASE, task, outcome=given)) == [Answer.TAKEN]
        (again,) = await claimed(site)
        assert again.id == task_id
        assert again.attempt_id != task.attempt_id
        stale = event(EventKind.COMPLETE, task, outcome=Outcome(reason=Reason.EXITED, exit_code=0))
        assert await told(site, stale) == [Answer.STALE]
    assert (await control.look(task_id))["status"] == "assigned"


async def test_a_task_that_the_server_does_not_know_is_stale(control: Control, opened: Any) -> None:
    async with opened(url=control.url, token=AGENT_TOKEN, wait=1) as site:
        unknown = Task(id="no-such-task", attempt_id="a", command="x", source="server_client")
        end = event(EventKind.COMPLETE, unknown, outcome=Outcome(reason=Reason.LOST))
        assert await told(site, end) == [Answer.STALE]


@pytest.mark.parametrize("token", ["", "wrong", USER_TOKEN])
async def test_a_token_that_is_not_the_agents_is_said_and_brings_nothing(
    control: Control, opened: Any, token: str
) -> None:
    await control.submit()
    async with opened(url=control.url, token=token) as site:
        with pytest.raises(Unreachable, match="token"):
            await site.client.claim(Demand(slots=1))
        assert len(site.said("error")) == 1
