"""Agents of the older kind: what they are told, how little, and what their words mean."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent_control_plane.older import bash_command
from tests.agent_control_plane.kit import House, Place, open_house


async def test_it_is_told_every_field_in_the_type_that_it_can_read(house: House) -> None:
    await house.user.submit(
        env={"A": "1"}, args=["x", "y"], max_retries=3, priority=1, timeout=1.5, retry_delay=0.5
    )
    [task] = await house.agent(older=True).claim()
    assert task["env"] == task["env_vars"] == {"A": "1"}
    assert (task["error"], task["error_msg"]) == ("", "")
    assert (task["max_retries"], task["retry_count"], task["priority"]) == (0, 0, 5)
    assert (task["timeout"], task["retry_delay"], task["exit_code"]) == (2, 1, None)
    for name in ("timeout", "priority", "max_retries", "retry_delay", "retry_count"):
        assert type(task[name]) is int, name
    for name in ("id", "name", "command", "status", "error", "attempt_id", "parent_id"):
        assert type(task[name]) is str, name
    for name in ("created_at", "assigned_at", "lease_expires_at"):
        assert task[name].endswith("Z"), name
    assert task["args"] == ["x", "y"]
    assert "depends_on" not in task


async def test_a_header_makes_an_agent_ours_whatever_its_id_did_before(house: House) -> None:
    for _ in range(3):
        await house.user.submit(priority=2)
    assert (await house.agent(older=True).claim(1))[0]["priority"] == 5
    assert (await house.agent().claim(1))[0]["priority"] == 2
    odd = house.agent("2", older=True, **{"X-Agent-Protocol": "none"})
    assert (await odd.claim(1))[0]["priority"] == 5


async def test_it_gets_no_more_than_may_run_counting_what_it_holds(house: House) -> None:
    for _ in range(6):
        await house.user.submit()
    agent = house.agent(older=True)
    first = await agent.claim(10)
    assert len(first) == 2
    assert await agent.claim(10) == []
    await agent.complete(first[0])
    assert len(await agent.claim(10)) == 1


async def test_it_gets_what_its_registered_workers_can_run(house: House) -> None:
    for _ in range(6):
        await house.user.submit()
    agent = house.agent(older=True)
    await agent.register(max_workers=4)
    assert len(await agent.claim(10)) == 4


async def test_the_site_says_how_many_an_unregistered_one_runs(place: Place) -> None:
    async with open_house(place, older_agent_workers=3) as house:
        for _ in range(6):
            await house.user.submit()
        assert len(await house.agent(older=True).claim(10)) == 3


async def test_an_older_agent_that_died_gets_work_again_after_its_leases(house: House) -> None:
    for _ in range(4):
        await house.user.submit()
    agent = house.agent(older=True)
    assert len(await agent.claim()) == 2
    house.clock.jump_wall(900)
    assert len(await agent.claim()) == 2


async def test_the_server_retries_for_it(house: House) -> None:
    await house.user.submit(max_retries=2, retry_delay=30)
    agent = house.agent(older=True)
    attempts = set()
    for number in range(3):
        task = await agent.one()
        attempts.add(task["attempt_id"])
        await agent.start(task)
        await agent.complete(task, 1, stderr=f"try {number}")
        if number < 2:
            shown = await house.user.get(task)
            assert (shown["status"], shown["retry_count"]) == ("pending", number + 1)
            assert shown["next_run_at"]
            house.clock.jump_wall(29)
            assert await agent.claim() == []
            house.clock.jump_wall(1)
    ended = await house.user.get(task)
    assert (ended["status"], ended["exit_code"], len(attempts)) == ("failed", 1, 3)
    assert [run["run_no"] for run in ended["runs"]] == [1, 2, 3]
    assert ended["stderr"] == "try 2"


async def test_a_retry_delay_of_zero_means_a_minute(house: House) -> None:
    await house.user.submit(max_retries=1, retry_delay=0)
    agent = house.agent(older=True)
    await agent.complete(await agent.one(), 1)
    house.clock.jump_wall(59)
    assert await agent.claim() == []
    house.clock.jump_wall(1)
    assert len(await agent.claim()) == 1


async def test_an_agent_of_ours_retries_by_itself(house: House) -> None:
    await house.user.submit(max_retries=5)
    task = await house.agent().one()
    assert task["max_retries"] == 5
    await house.agent().complete(task, 1, status="failed")
    assert (await house.user.get(task))["status"] == "failed"


async def test_its_result_comes_twice_and_counts_once(house: House) -> None:
    await house.user.submit(max_retries=3, retry_delay=1)
    agent = house.agent(older=True)
    task = await agent.one()
    await agent.start(task)
    first, second = await asyncio.gather(agent.complete(task, 1), agent.complete(task, 1))
    assert first[0] == second[0] == 0
    before = house.rows(task)
    house.clock.jump_wall(0.5)
    assert (await agent.complete(task, 1))[0] == 0
    assert house.rows(task) == before
    house.clock.jump_wall(1)
    again = await agent.one()
    assert (await house.user.get(task))["retry_count"] == 1
    before = house.rows(task)
    assert (await agent.complete(task, 1))[0] == 0  # also beside the new attempt
    assert house.rows(task) == before
    assert (await agent.complete(again, 0))[1]["status"] == "completed"


async def test_a_retry_that_waits_is_cancelled_at_once_and_its_old_attempt_stays_over(
    house: House,
) -> None:
    await house.user.submit(max_retries=3)
    agent = house.agent(older=True)
    task = await agent.one()
    await agent.start(task)
    await agent.complete(task, 1)
    assert (await house.user.cancel(task))[1]["status"] == "cancelled"
    assert (await agent.renew(task))[0] == 30001
    assert (await agent.complete(task, 1))[0] == 0


async def test_a_cancelled_task_is_not_retried_for_it(house: House) -> None:
    await house.user.submit(max_retries=3)
    agent = house.agent(older=True)
    task = await agent.one()
    await house.user.cancel(task)
    assert (await agent.complete(task, -1))[1]["status"] == "cancelled"


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"exit_code": 0}, "completed"),
        ({"exit_code": 0, "error": ""}, "completed"),
        ({"exit_code": None}, "completed"),
        ({}, "completed"),
        ({"exit_code": 0, "error": "lease expired during agent restart"}, "failed"),
        ({"exit_code": 0, "error": "process lost"}, "failed"),
        ({"exit_code": -1}, "failed"),
        ({"exit_code": 2, "error": "x"}, "failed"),
    ],
)
async def test_exit_code_and_error_tell_how_it_ended(
    house: House, told: dict[str, Any], status: str
) -> None:
    await house.user.submit()
    agent = house.agent(older=True)
    task = await agent.one()
    assert (await agent.tell(task, "complete", **told))[1]["status"] == status


async def test_its_run_is_on_record_although_its_start_was_refused(house: House) -> None:
    await house.user.submit()
    agent = house.agent(older=True)
    task = await agent.one()
    house.clock.jump_wall(300)
    assert (await agent.start(task))[0] == 30003  # it runs all the same, and never asks again
    assert (await agent.renew(task))[0] == 0
    shown = await house.user.get(task)
    assert (shown["status"], len(shown["runs"])) == ("running", 1)


async def test_the_same_claim_twice_does_not_make_it_running(house: House) -> None:
    await house.user.submit()
    agent = house.agent(older=True)
    [task] = await agent.claim(10, "r")
    assert [t["attempt_id"] for t in await agent.claim(10, "r")] == [task["attempt_id"]]
    assert (await house.user.get(task))["status"] == "assigned"


def run_as_it_does(task: dict[str, Any], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", bash_command({"args": [], "exec": False, **task})],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(cwd)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_python_code_runs_as_python(tmp_path: Path) -> None:
    code = 'import sys\nprint("it\'s", 6 * 7)\nsys.exit(3)'
    done = run_as_it_does({"type": "python", "command": code}, tmp_path)
    assert (done.returncode, done.stdout) == (3, "it's 42\n")


def test_a_python_file_runs_as_python(tmp_path: Path) -> None:
    file = tmp_path / "a b.py"
    file.write_text("print('from a file')")
    done = run_as_it_does({"type": "python", "command": str(file)}, tmp_path)
    assert done.stdout == "from a file\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/usr/bin/env python3\nprint('py', \"'\")\nraise SystemExit(4)", "py '\n"),
        ("echo plain '$HOME' \"it's\"\nexit 4", "plain $HOME it's\n"),
        ("#!/bin/sh\nprintf '%s' 100%\nexit 4", "100%"),
    ],
)
def test_a_script_runs_by_its_first_line_or_by_bash(tmp_path: Path, text: str, said: str) -> None:
    done = run_as_it_does({"type": "script", "command": text}, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (4, said, "")
    assert list(tmp_path.iterdir()) == []  # its private copy is gone


def test_a_path_to_a_script_runs_that_script(tmp_path: Path) -> None:
    file = tmp_path / "s.sh"
    file.write_text("#!/bin/sh\necho by path")  # not executable
    done = run_as_it_does({"type": "script", "command": str(file)}, tmp_path)
    assert done.stdout == "by path\n"


def test_exec_runs_one_program_without_a_shell(tmp_path: Path) -> None:
    program = tmp_path / "a program; with $signs"
    program.write_text("#!/bin/sh\necho ran")
    program.chmod(0o700)
    done = run_as_it_does({"type": "shell", "command": str(program), "exec": True}, tmp_path)
    assert done.stdout == "ran\n"


def test_args_and_shell_text_go_as_they_are() -> None:
    for task in (
        {"type": "python", "command": "prog", "args": ["a"], "exec": False},
        {"type": "shell", "command": "prog", "args": [], "exec": False},
    ):
        assert bash_command(task) == "prog"


async def test_every_refusal_has_an_integer_code_in_its_body(house: House) -> None:
    client = house.client
    for reply in (
        await client.post("/api/v1/agent/tasks/claim", content=b"{}"),
        await client.get("/nowhere"),
        await client.put("/api/v1/agent/register"),
        await client.post("/api/v1/agent/tasks/claim/", content=b"{}"),
    ):
        body = json.loads(reply.content)
        assert type(body["code"]) is int
        assert body["code"] != 0
        assert body["message"]
