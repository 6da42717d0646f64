"""docs/trouble.md, "Tasks": programs that cannot be started, and output that nobody expects."""

from pathlib import Path

import pytest

from agent_core.testing.http_server import ScriptedServer, answer
from tests.end_to_end.site import Site
from tests.end_to_end.trouble import Ended, Row, client, on_a_terminal, piped

GIGABYTE = 10**9
COMPLETE = "/api/v1/agent/tasks/*/complete"


@pytest.fixture(scope="module")
def house(shared_site: Site) -> Site:
    """One server and one agent for all of these: none of them harms either."""
    shared_site.start_server()
    shared_site.start_agent()
    return shared_site


def _waited(house: Site, *args: str) -> Ended:
    return client(house, "submit", "--wait", *args)


def _task(house: Site, done: Ended) -> dict[str, object]:
    return house.task(done.text.split()[0])


def test_a_program_that_is_missing(house: Site, row: Row) -> None:
    done = _waited(house, "--", "no-such-program", "x")

    row.ended(done)
    assert _task(house, done)["runs"] == []


def test_a_program_that_is_not_executable(house: Site, tmp_path: Path, row: Row) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)

    done = _waited(house, "--", str(program))

    row.ended(done)
    assert _task(house, done)["runs"] == []


def test_a_working_directory_that_is_missing(house: Site, tmp_path: Path, row: Row) -> None:
    done = _waited(house, "--workdir", str(tmp_path / "nowhere"), "--", "true")

    row.ended(done)
    assert _task(house, done)["runs"] == []


def test_a_command_that_the_shell_does_not_find_is_the_tasks_own_failure(
    house: Site, row: Row
) -> None:
    row.ended(_waited(house, "-c", "no-such-program"))


def _logs_of(house: Site, text: str) -> list[str]:
    """The command that shows what a task wrote."""
    task_id = house.submit(text)
    assert house.wait(task_id)["status"] == "completed"
    return ["logs", task_id, "--stream", "stdout"]


def test_output_that_is_no_utf_8(house: Site, row: Row) -> None:
    logs = _logs_of(house, r"printf 'caf\351\n'")

    row.ended(on_a_terminal(house, *logs))
    assert piped(house, *logs) == (0, b"caf\xe9\n", b"")


def test_output_that_holds_nul(house: Site, row: Row) -> None:
    logs = _logs_of(house, r"printf 'a\0b\n'")

    row.ended(on_a_terminal(house, *logs))
    assert piped(house, *logs) == (0, b"a\0b\n", b"")


def test_output_of_a_gigabyte(house: Site, row: Row) -> None:
    text = f"echo first; head -c {GIGABYTE} /dev/zero | tr '\\0' x; echo; echo last"

    code, out, remark = piped(house, *_logs_of(house, text))

    row.ended_with(code, remark.decode())
    assert out.startswith(b"first\nxxx")
    assert out.endswith(b"xxx\nlast\n")
    assert len(out) + int(remark.split()[1]) == len(b"first\n\nlast\n") + GIGABYTE


def test_an_environment_name_that_holds_an_equals_sign(house: Site, row: Row) -> None:
    status, said = house.call("POST", "/api/v1/tasks", {"command": "true", "env": {"A=B": "1"}})

    assert status == 400
    row.ended_with(4, said["message"])


def test_an_environment_that_holds_nul(house: Site, row: Row) -> None:
    status, said = house.call("POST", "/api/v1/tasks", {"command": "true", "env": {"A": "x\0y"}})

    assert status == 400
    row.ended_with(4, said["message"])


def test_an_environment_option_without_a_name(house: Site, row: Row) -> None:
    row.ended(client(house, "submit", "--env", "=x", "--", "true"))


async def test_an_environment_that_another_server_let_pass(site: Site, row: Row) -> None:
    """A server may be older, or another program: what it grants is looked at here, too."""
    async with ScriptedServer() as scripted:
        task = {"id": "t-1", "attempt_id": "a-1", "command": "true", "env": {"A=B": "1"}}
        scripted.on("/api/v1/agent/register", answer({}))
        scripted.on("/api/v1/agent/heartbeat", answer({}))
        scripted.on("/api/v1/agent/tasks/claim", answer({"tasks": [task]}), answer({"tasks": []}))
        scripted.on(COMPLETE, answer({}))
        agent = site.start_agent(server_client__url=scripted.url)
        [told] = await scripted.wait_for(COMPLETE)
        body = told.json()
        assert isinstance(body, dict)
        assert body["exit_code"] == -1
        row.went_on(str(body["error"]))
        assert agent.alive
