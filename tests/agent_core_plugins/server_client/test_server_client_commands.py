"""Commands: wherever they come from, carried out once, answered until that was heard."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent_core import Demand, Event, EventKind, Key, Outcome, Reason, Status, Task
from agent_core.testing.clock import TurnedClock
from agent_core.testing.http_server import Reply, Request, ScriptedServer, answer
from agent_core_plugins.server_client.commands import AT_ONCE, REMEMBERED

API = "/api/v1/agent"
EVENTS, REGISTER, HEARTBEAT = f"{API}/events", f"{API}/register", f"{API}/heartbeat"
CLAIM = f"{API}/tasks/claim"


def running(name: str = "t1", **fields: Any) -> Task:
    given = {"status": Status.RUNNING, "run_no": 1} | fields
    return Task(id=name, attempt_id=f"{name}-1", command="x", source="server_client", **given)


def command(number: int = 1, action: str = "cancel", task: str = "t1", **more: Any) -> Any:
    given = {"id": f"c{number}", "action": action, "task_id": task, "attempt_id": f"{task}-1"}
    return given | {"reason": "too slow"} | more


def named(*words: str) -> Reply:
    return answer({"capabilities": list(words), "lease_sec": 300})


def taking(*commands: Any) -> Callable[[Request], Reply]:
    """Takes all events, and has these commands to say with it."""

    def reply(request: Request) -> Reply:
        results = [{"code": 0} for _ in request.json()["events"]]
        return answer({"results": results, "commands": list(commands)})

    return reply


def answers(server: ScriptedServer) -> list[dict[str, Any]]:
    return [
        {name: each[name] for name in ("id", "code", "message")}
        for request in server.asked(EVENTS)
        for each in request.json()["events"]
        if each["kind"] == "command"
    ]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def speaking(server: ScriptedServer) -> ScriptedServer:
    server.on(REGISTER, named("events", "wait", "commands"))
    server.on(EVENTS, taking())
    return server


@pytest.mark.parametrize("path", [HEARTBEAT, EVENTS, CLAIM])
async def test_a_cancel_comes_with_any_answer_and_ends_the_run(
    opened: Any, speaking: ScriptedServer, path: str
) -> None:
    said = {
        HEARTBEAT: answer({"status": "ok", "commands": [command()]}),
        EVENTS: taking(command()),
        CLAIM: answer({"tasks": None, "commands": [command()]}),
    }
    async with opened() as site:
        await speaking.wait_for(HEARTBEAT)
        site.agent.add(running())
        speaking.on(path, said[path], taking() if path == EVENTS else answer({"tasks": []}))
        if path == HEARTBEAT:
            await site.client._contact._heartbeat(site.agent)
        elif path == EVENTS:
            end = Event(
                kind=EventKind.COMPLETE,
                key=Key("t9", "t9-1"),
                source="server_client",
                run_no=1,
                at=0.0,
                seq=1,
                outcome=Outcome(reason=Reason.EXITED, exit_code=0),
            )
            await site.client.report([end])
        else:
            await site.client.claim(Demand(slots=1))
        await until(lambda: answers(speaking))
        assert site.agent.cancelled == [(Key("t1", "t1-1"), 30002, "cancelled by a user: too slow")]
        assert answers(speaking) == [{"id": "c1", "code": 0, "message": ""}]


async def test_a_command_ends_a_claim_that_waits_and_the_next_one_hangs_at_once(
    opened: Any, speaking: ScriptedServer
) -> None:
    speaking.on(
        CLAIM,
        answer({"tasks": [], "commands": [command(1)]}),
        answer({"tasks": [], "commands": [command(2, task="t2")]}),
        answer({"tasks": [{"id": "t3", "attempt_id": "t3-1", "command": "x"}]}),
    )
    async with opened() as site:
        for name in ("t1", "t2"):
            site.agent.add(running(name))
        claim = await site.client.claim(Demand(slots=1))
        assert [each.id for each in claim.tasks] == ["t3"]
        await until(lambda: len(site.agent.cancelled) == 2)
        assert {body.json()["request_id"] for body in speaking.asked(CLAIM)} == {"stream-1:1"}


async def test_a_command_that_is_told_again_is_answered_again_and_carried_out_once(
    opened: Any, speaking: ScriptedServer
) -> None:
    async with opened() as site:
        await speaking.wait_for(HEARTBEAT)
        site.agent.add(running())
        speaking.on(EVENTS, Reply(status=502, body=b""), taking())
        hear = site.client._contact.hear
        assert hear([command()])
        await speaking.wait_for(EVENTS)
        await until(lambda: site.client._contact.state == "away")
        assert not hear([command()])
        await until(lambda: len(answers(speaking)) == 2)
        assert len(site.agent.cancelled) == 1
        assert [each["code"] for each in answers(speaking)] == [0, 0]


@pytest.mark.parametrize("action", ["suspend", "resume", "drain", "undrain", "fly", ""])
async def test_what_this_agent_does_not_do_is_said(
    opened: Any, speaking: ScriptedServer, action: str
) -> None:
    async with opened() as site:
        await speaking.wait_for(HEARTBEAT)
        site.agent.add(running())
        site.client._contact.hear([command(action=action)])
        await until(lambda: answers(speaking))
        (said,) = answers(speaking)
        assert said == {"id": "c1", "code": 30016, "message": f"this agent does not {action}"}
        assert site.agent.cancelled == []


async def test_a_cancel_of_what_is_not_there_is_answered_with_why(
    opened: Any, speaking: ScriptedServer
) -> None:
    async with opened() as site:
        await speaking.wait_for(HEARTBEAT)
        site.agent.add(running("t1"))
        site.agent.add(running("t2", status=Status.COMPLETED))
        site.client._contact.hear(
            [
                command(1, task="t1", attempt_id="t1-0"),
                command(2, task="t2"),
                command(3, task="unknown"),
                command(4, task_id=None, attempt_id=["x"]),
            ]
        )
        await until(lambda: len(answers(speaking)) == 4)
        assert [(each["id"], each["code"]) for each in answers(speaking)] == [
            ("c1", 30001),
            ("c2", 0),
            ("c3", 30004),
            ("c4", 30004),
        ]
        assert site.agent.cancelled == []


async def test_a_cancel_that_cannot_be_saved_is_carried_out_when_it_is_told_again(
    opened: Any, speaking: ScriptedServer
) -> None:
    async with opened() as site:
        await speaking.wait_for(HEARTBEAT)
        site.agent.add(running())
        site.agent.full = True
        site.client._contact.hear([command()])
        await until(lambda: site.said("error"))
        assert answers(speaking) == []
        site.agent.full = False
        assert site.client._contact.hear([command()])
        await until(lambda: answers(speaking))
        assert len(site.agent.cancelled) == 1


async def test_where_there_are_no_batches_nothing_is_answered(
    opened: Any, server: ScriptedServer
) -> None:
    server.on(REGISTER, named("commands"))
    server.on(HEARTBEAT, answer({"status": "ok", "commands": [command()]}))
    async with opened() as site:
        site.agent.add(running())
        await site.agent.until(lambda: site.agent.cancelled)
        await server.wait_for(HEARTBEAT)
    assert server.asked(EVENTS) == []


@pytest.mark.parametrize("words", [(), ("events",)])
async def test_a_server_without_the_word_commands_nothing(
    opened: Any, server: ScriptedServer, words: tuple[str, ...]
) -> None:
    clock = TurnedClock()
    server.on(REGISTER, named(*words))
    server.on(HEARTBEAT, answer({"status": "ok", "commands": [command()]}))
    server.on(EVENTS, taking())
    async with opened(clock=clock) as site:
        site.agent.add(running("t1", status=Status.PENDING, run_no=0))
        await server.wait_for(HEARTBEAT)
        await clock.until_sleeping(3)
        assert site.agent.cancelled == []


@pytest.mark.parametrize(
    "commands",
    [{}, "cancel", 5, [None], [[]], [{}], [{"id": 5}], [{"id": ""}], [{"id": "x" * 256}]],
)
async def test_commands_that_are_none_harm_nothing(
    opened: Any, speaking: ScriptedServer, commands: Any
) -> None:
    async with opened() as site:
        await speaking.wait_for(HEARTBEAT)
        site.agent.add(running())
        site.client._contact.hear(commands)
        site.client._contact.hear([command()])
        await until(lambda: answers(speaking))
        assert len(answers(speaking)) == 1


async def test_words_that_are_no_text_are_read_as_some(
    opened: Any, speaking: ScriptedServer
) -> None:
    async with opened() as site:
        await speaking.wait_for(HEARTBEAT)
        site.agent.add(running())
        site.client._contact.hear([command(reason="why\ud800\0" + "y" * 5000)])
        await until(lambda: answers(speaking))
        ((_, _, reason),) = site.agent.cancelled
        assert len(reason) <= 1100
        assert reason.startswith("cancelled by a user: why?\N{REPLACEMENT CHARACTER}y")


async def test_memory_of_commands_is_bounded(opened: Any, speaking: ScriptedServer) -> None:
    async with opened() as site:
        await speaking.wait_for(HEARTBEAT)
        commands = site.client._commands
        for start in range(0, REMEMBERED * 2, AT_ONCE):
            several = [command(n, action="fly") for n in range(start, start + 2 * AT_ONCE)]
            commands.hear(several)
            assert len(commands._new) <= AT_ONCE
            await until(lambda: not commands._new)
        assert len(commands._said) <= REMEMBERED
