"""What every run of one agent works with, and the judgement that stands before each start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent_core import endings
from agent_core import launch as launching
from agent_core.api.wire import Code
from agent_core.backoff import Backoff
from agent_core.clock import Clock, Instant
from agent_core.errors import NeverRan, reason_of
from agent_core.hooks import Caller, Start
from agent_core.leases import Leases
from agent_core.log import get
from agent_core.machine import Machine
from agent_core.models import Key, Launch, Outcome, Task
from agent_core.moves import Moves
from agent_core.rooms import Rooms

GOOD_ENOUGH = 5.0  # seconds for which a task that was allowed need not be judged again
JUDGED = 1000  # launches that are kept for so long


class Judged:
    """Launches that were allowed when their tasks came, for as long as that word is good enough."""

    def __init__(self) -> None:
        self._launches: dict[Key, Launch] = {}

    def keep(self, launch: Launch) -> None:
        if len(self._launches) >= JUDGED:
            self._launches.pop(next(iter(self._launches)))
        self._launches[launch.key] = launch

    def take(self, task: Task, devices: Sequence[str], now: Instant) -> Launch | None:
        """The launch of this very start, if it was judged a moment ago; it is used once."""
        launch = self._launches.pop(task.key, None)
        if launch is None or launch.stored_at is None or devices:
            return None
        fresh = now.boottime - launch.stored_at.boottime <= GOOD_ENOUGH
        return launch if fresh and launch.run_no == task.run_no + 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Workbench:
    """Shared by worker, runners and recovery."""

    hooks: Caller
    moves: Moves
    clock: Clock
    leases: Leases
    machine: Machine
    runs_dir: Path
    backoff: Callable[[], Backoff] = Backoff  # for whatever is tried again
    rooms: Rooms = field(default_factory=Rooms)
    judged: Judged = field(default_factory=Judged)
    log: Any = field(default_factory=lambda: get("runner"))


async def consider(
    bench: Workbench, task: Task, now: Instant, devices: Sequence[str] = ()
) -> tuple[Launch | None, Outcome | None]:
    """The launch that the task's next start would have, and the outcome if it may not run."""
    if task.unreadable:
        return None, endings.refused(Code.INVALID, task.unreadable)
    start_id = launching.new_start_id()
    try:
        if lacks := bench.machine.lacks(task) or bench.hooks.lacks(task.wanted_executor):
            raise NeverRan(lacks)
        launch = launching.build(
            task, bench.runs_dir, start_id=start_id, devices=devices, stored_at=now
        )
    except NeverRan as error:
        return None, endings.never_ran(error)
    except Exception as error:  # a source's mistake: it must not take the agent with it
        get("runner").exception("a task cannot be made ready", task=task.id, source=task.source)
        words = f"nothing can be started from its description ({reason_of(error)})"
        return None, endings.never_ran(NeverRan(words))
    verdict = await bench.hooks.validate(task, launch)
    if verdict.allowed and verdict.argv:
        launch = replace(launch, argv=verdict.argv, program=verdict.program)
    return launch, None if verdict.allowed else endings.refused(Code.POLICY, verdict.reason)


async def judge(bench: Workbench, task: Task) -> Outcome | None:
    """Why a task that has come may not run here. What is allowed is not judged again at once."""
    launch, refusal = await consider(bench, task, Instant.now(bench.clock))
    if launch and not refusal:
        bench.judged.keep(launch)
    return refusal


def taking(
    task: Task, launch: Launch, start: Start, now: Instant, devices: Sequence[str] = ()
) -> dict[str, Any]:
    """What storing this start changes of the task."""
    changes: dict[str, Any] = {"start_id": launch.start_id, "executor": start.plugin}
    changes |= {"handle": {}, "assigned_at": now}
    if tuple(devices) != task.devices:
        changes["devices"] = tuple(devices)
    return changes


async def made_ready(
    bench: Workbench, task: Task, now: Instant, devices: Sequence[str] = ()
) -> tuple[Launch, Start] | Outcome:
    """The task's next start, and the executor that has taken it; or why it may not run."""
    launch, refusal = bench.judged.take(task, devices, now), None
    if launch is None:
        launch, refusal = await consider(bench, task, now, devices)
    if refusal or launch is None:
        return refusal or endings.never_ran(NeverRan("nobody can make a launch of it"))
    try:
        return launch, bench.hooks.choose(launch)
    except NeverRan as error:
        return endings.never_ran(error)
