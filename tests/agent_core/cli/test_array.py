"""submit --array: one task for each index, repeatable, and clear where it ends half-way."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_core.cli.array import Indexes
from agent_core.cli.many import AHEAD, in_order
from agent_core.testing.http_server import Reply, Request, ScriptedServer, answer

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py
TASKS = "/api/v1/tasks"


class Plane:
    """Takes tasks; the same key is the same task."""

    def __init__(self, server: ScriptedServer) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.refuse: set[str] = set()  # indexes
        self.reply = answer(code=30013, message="the queue is full", status=503)
        server.on(TASKS, self._submit)

    @property
    def indexes(self) -> list[str]:
        return [task["env"]["REMOTEGPU_ARRAY_INDEX"] for task in self.tasks.values()]

    def _submit(self, request: Request) -> Reply:
        task = request.json()
        index = task["env"]["REMOTEGPU_ARRAY_INDEX"]
        if index in self.refuse:
            return self.reply
        self.tasks.setdefault(request.headers["idempotency-key"], task)
        return answer({"id": f"t-{index}", "name": task["name"], "status": "pending"}, status=201)


@pytest.fixture
def plane(server: ScriptedServer) -> Plane:
    return Plane(server)


@pytest.mark.parametrize(
    ("text", "indexes"),
    [
        ("0-9", tuple(range(10))),
        ("0-9:2", (0, 2, 4, 6, 8)),
        ("1,3,5", (1, 3, 5)),
        ("7", (7,)),
        ("5-5", (5,)),
        ("0-2,8,1-3", (0, 1, 2, 8, 3)),
        (" 1 , 2 ", (1, 2)),
    ],
)
def test_indexes_are_read_as_they_are_meant(text: str, indexes: tuple[int, ...]) -> None:
    assert Indexes().convert(text, None, None) == indexes


async def test_each_index_is_a_task_of_its_own(plane: Plane, remotegpu: Remotegpu) -> None:
    done = await remotegpu(
        "submit", "--array", "0-99", "--name", "sweep", "--env", "A=b", "--", "true"
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.split() == [f"t-{n}" for n in range(100)]  # in their order
    assert sorted(map(int, plane.indexes)) == list(range(100))
    names = {task["name"]: task["env"] for task in plane.tasks.values()}
    assert names["sweep-7"] == {"A": "b", "REMOTEGPU_ARRAY_INDEX": "7"}


async def test_the_same_key_again_gives_the_same_tasks(plane: Plane, remotegpu: Remotegpu) -> None:
    submit = ("submit", "--array", "1,2", "--idempotency-key", "k", "--", "true")
    first = await remotegpu(*submit)
    assert (await remotegpu(*submit)).out == first.out
    assert len(plane.tasks) == 2
    await remotegpu("submit", "--array", "1,2", "--", "true")
    assert len(plane.tasks) == 4


async def test_what_is_wrong_with_one_is_said_once_and_nothing_more_is_sent(
    server: ScriptedServer, plane: Plane, remotegpu: Remotegpu
) -> None:
    plane.refuse = {"0"}
    plane.reply = answer(code=30005, message="priority: 1 to 10", status=400)
    done = await remotegpu("submit", "--array", "0-99", "--", "true")
    assert (done.code, done.out, done.err) == (4, "", "remotegpu: priority: 1 to 10\n")
    assert len(server.requests) == 1


async def test_an_end_half_way_says_how_to_go_on(plane: Plane, remotegpu: Remotegpu) -> None:
    plane.refuse = {"5"}
    plane.reply = answer(code=30014, message="the disk is full", status=409)
    done = await remotegpu("submit", "--array", "0-9", "--name", "n", "--", "true")
    assert done.code == 4
    assert done.out.split() == [f"t-{n}" for n in range(5)]
    assert "the disk is full; 5 of 10 tasks are known to be submitted" in done.err
    key = re.search(r"--idempotency-key (\S+)", done.err)
    assert key is not None
    plane.refuse = set()
    again = await remotegpu(
        "submit", "--array", "0-9", "--name", "n", "--idempotency-key", key[1], "--", "true"
    )
    assert again.out.split() == [f"t-{n}" for n in range(10)]
    assert len(plane.tasks) == 10  # none twice


async def test_ctrl_c_says_how_to_go_on(server: ScriptedServer, plane: Plane) -> None:
    gate = asyncio.Event()
    hold = Reply(gate=gate)
    submit = plane._submit
    server.on(TASKS, lambda request: submit(request) if len(server.requests) < 3 else hold)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent_core.cli", "submit", "--array", "0-9", "--", "true",
        stdout=-1, stderr=-1,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"t-0\n"
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    gate.set()
    assert process.returncode == 130
    assert b"of 10 tasks are known to be submitted; the same command with" in err
    assert err.count(b"\n") == 1


async def test_in_json_an_array_is_a_list(plane: Plane, remotegpu: Remotegpu) -> None:
    done = await remotegpu("submit", "--array", "3,1", "--json", "--", "true")
    assert json.loads(done.out) == {"tasks": [
        {"index": 3, "id": "t-3", "name": "array-3", "status": "pending"},
        {"index": 1, "id": "t-1", "name": "array-1", "status": "pending"},
    ]}  # fmt: skip


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1)])
async def test_an_array_can_be_waited_for(
    server: ScriptedServer, plane: Plane, remotegpu: Remotegpu, status: str, code: int
) -> None:
    server.on(f"{TASKS}/t-0", answer({"id": "t-0", "status": "completed", "exit_code": 0}))
    server.on(f"{TASKS}/t-1", answer({"id": "t-1", "status": status, "exit_code": code}))
    done = await remotegpu("submit", "--array", "0-1", "--wait", "--", "true")
    assert (done.code, done.out) == (code, "t-0\nt-1\n")
    assert done.err.splitlines()[1] == f"remotegpu: t-1 {status}, exit code {code}"


@given(st.lists(st.integers(), max_size=3 * AHEAD))
def test_answers_come_in_the_order_of_the_questions(items: list[int]) -> None:
    assert list(in_order(items, str)) == [str(item) for item in items]


def test_the_first_failure_ends_it_and_no_more_is_begun() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 40:
            raise ValueError(item)
        return item

    told: list[int] = []
    with pytest.raises(ValueError, match="40"):
        told.extend(in_order(range(10_000), work))
    assert told == list(range(40))
    assert len(begun) <= 41 + AHEAD
