"""kill -9 at any instant: what was answered is in the file, whole; what was not may be, whole."""

import os
import random
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from agent_core import Status
from agent_core_plugins.sqlite_store.opening import open_database
from agent_core_plugins.sqlite_store.store import SqliteTasks

ROUNDS = 10  # each kills one life at random

LIFE = """
    import asyncio, os, sys
    from dataclasses import replace
    from pathlib import Path
    from agent_core import Answer, Receipt, Status, TaskRun
    from agent_core import EventKind
    from agent_core.testing.store import finish, make_event, make_outcome, make_task
    from agent_core_plugins.sqlite_store.opening import open_database
    from agent_core_plugins.sqlite_store.store import SqliteTasks

    def told(*words):
        os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

    async def live(store, task):
        await store.add([task], {"last": task.id})
        told("added", task.id)
        started = {"status": Status.RUNNING, "start_id": "s", "run_no": 1}
        assert await store.save(task, started, make_event(task, EventKind.START))
        task = replace(task, **started)
        told("started", task.id)
        again = make_event(task, EventKind.RUN)
        run = TaskRun(1, 1.0, make_outcome(b"first " + task.id.encode()))
        assert await store.save(task, {"status": Status.PENDING, "retry_count": 1}, again, run)
        task = replace(task, status=Status.PENDING, retry_count=1)
        told("again", task.id)
        await finish(store, task, make_outcome(b"second " + task.id.encode()))
        told("ended", task.id)

    async def settle(store):
        while True:
            events = await store.outbox(limit=7)
            await store.settle([Receipt(seq=each.seq, answer=Answer.TAKEN) for each in events])
            for event in events:
                told("settled", event.seq)
            await asyncio.sleep(0.002)

    async def main(path, name):
        store = SqliteTasks(open_database(Path(path)))
        told("opened", store.stream)
        settling = asyncio.create_task(settle(store))
        async def worker(number):
            for count in range(10_000):
                await live(store, make_task(id=f"{name}-{number}-{count}"))
        await asyncio.gather(settling, *(worker(number) for number in range(8)))

    asyncio.run(main(*sys.argv[1:]))
"""

STEPS = {"added": 0, "started": 1, "again": 2, "ended": 3}


def answers_until_killed(path: Path, name: str, rng: random.Random) -> list[list[str]]:
    """Starts a life and ends it after some answers, or some milliseconds; what it had said."""
    command = [sys.executable, "-c", textwrap.dedent(LIFE), str(path), name]
    said = b""
    wanted = rng.choice([0, 1, 20, 200, 600])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as life:
        assert life.stdout is not None
        while said.count(b"\n") < wanted:
            read = os.read(life.stdout.fileno(), 65536)
            assert read, "it ended by itself"
            said += read
        select.select([], [], [], rng.uniform(0, 0.5 if wanted == 0 else 0.02))
        life.send_signal(signal.SIGKILL)
        said += life.stdout.read()
        assert life.wait() == -signal.SIGKILL
    return [line.split() for line in said.decode().split("\n")[:-1]]


async def check(path: Path, furthest: dict[str, int], settled: set[int]) -> str:
    """Everything answered is there, and every task is whole: state, runs and events agree."""
    store = SqliteTasks(open_database(path))
    assert store._opened.writing.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    events = await store.outbox(limit=10_000)
    assert not settled & {event.seq for event in events}
    unsettled: dict[str, set[str]] = {}
    for event in events:
        unsettled.setdefault(event.key.task_id, set()).add(event.kind.value)
        if event.kind.value in {"run", "complete"}:
            assert event.outcome is not None
            assert event.outcome.stdout.endswith(event.key.task_id.encode())
    found: dict[str, int] = {}
    after = None
    while page := await store.tasks(limit=1000, after=after):
        after = page[-1].key
        for task in page:
            reached = 3 if task.status is Status.COMPLETED else 2 * task.retry_count
            reached = 1 if task.status is Status.RUNNING else reached
            found[task.id] = reached
            told = {"start"} if reached >= 1 else set()
            told |= ({"run"} if reached >= 2 else set()) | ({"complete"} if reached == 3 else set())
            assert unsettled.get(task.id, set()) <= told
            assert len(await store.runs(task.key)) == (1 if reached >= 2 else 0)
    missing = {name for name, step in furthest.items() if found.get(name, -1) < step}
    assert not missing
    if found:
        assert await store.get_fact("last") in found
    stream = store.stream
    await store.close()
    return stream


async def test_nothing_that_was_answered_is_missing_after_kill_9(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown by pytest when this fails
    rng = random.Random(seed)
    path = tmp_path / "agent.db"
    furthest: dict[str, int] = {}
    settled: set[int] = set()
    streams: set[str] = set()
    for number in range(ROUNDS):
        for word, what in answers_until_killed(path, f"life{number}", rng):
            if word == "settled":
                assert int(what) not in settled, "a number was used twice"
                settled.add(int(what))
            elif word == "opened":
                streams.add(what)
            else:
                furthest[what] = max(furthest.get(what, -1), STEPS[word])
        streams.add(await check(path, furthest, settled))
    assert len(furthest) > 20
    assert len(settled) > 20
    assert len(streams) == 1
