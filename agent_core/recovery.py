"""After a restart: every stored task to its true state, none of them run twice."""

import asyncio
import os
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from agent_core.errors import StoreError, reason_of
from agent_core.execution import Execution
from agent_core.lifecycle import HELD, Status
from agent_core.log import get
from agent_core.models import Key, Launch, Lost, NeverStarted, Task
from agent_core.protocols import Store
from agent_core.removal import remove
from agent_core.workbench import Workbench

PAGE = 1000  # tasks read at a time

Found = Execution | NeverStarted | Lost


async def unfinished(store: Store) -> AsyncIterator[Task]:
    """Every task that the agent left without an end, oldest first.

    Pending ones wait again; any other had a start, so it gets a slot and `find_run`.
    """
    after: Key | None = None
    while page := await store.tasks(HELD, limit=PAGE, after=after):
        after = page[-1].key
        for task in page:
            yield task


async def reread(bench: Workbench, store: Store, key: Key) -> Task | None:
    """The task as it really stands, where somebody else moved it; asked until it can be read."""
    backoff = bench.backoff()
    while True:
        try:
            return await store.get(key)
        except StoreError as error:
            get("recovery").error("a task cannot be read, trying again", why=str(error))
            await bench.clock.sleep(backoff.next())


def rooms(runs_dir: Path) -> list[str]:
    """The names of what is in there now. Asked before any new start makes its own."""
    try:
        return os.listdir(runs_dir)
    except FileNotFoundError:
        return []


def sweep(runs_dir: Path, names: Collection[str], kept: Collection[str]) -> None:
    """Remove the rooms of starts that are not `kept`: an agent was killed before it did."""
    for name in names:
        if name.split(".", 1)[0] in kept:
            continue
        remove(str(runs_dir / name))


async def find_run(
    bench: Workbench, task: Task, launch: Launch, leaving: "asyncio.Future[None]"
) -> Found | None:
    """What became of a stored start, by the word of its executor; asked until it is known.

    An executor that cannot tell now is asked again: only its own `Lost` is lost. None: the agent
    leaves before it was known.
    """
    running = task.status is not Status.ASSIGNED
    backoff = bench.backoff()
    while not leaving.done():
        try:
            found = await bench.hooks.reattach(task.executor, launch, running=running)
        except Exception as error:
            get("recovery").warning("a run cannot be found now", why=reason_of(error))
            await asyncio.wait({leaving}, timeout=backoff.next())
            continue
        if isinstance(found, NeverStarted) and running:
            return Lost(reason="its executor knows nothing of this run")
        return found
    return None
