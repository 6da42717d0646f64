"""A task's life is five verbs: claim, validate, execute, report, store. Read those first.

The way of a task, with the hook it meets at each step:

    claim     a source brings it                              (each source in its own loop)
    store     it is saved, with the source's facts            (one transaction)
    validate  every validator says yes, or it is refused
    schedule  it waits until the scheduler gives it a slot
    validate  once more: the site's rules may have changed while it waited
    execute   the first executor that does not return None takes it
    store     the start is saved: a start id and who took it, before anything is forked
    execute   what the executor returned is awaited: the run begins
    store     the run is saved: number, time, the executor's handle, and the start event
    store     the end is saved with its outcome and its event, and the slot is free
    report    the syncer hands the events to the source, until it has taken them

A failure with retries left goes back to `schedule` with a due time: a row in the store, no timer.
After a restart each task that had a start has its slot back before any new work is claimed, and
meets `reattach` there.

Who is asked, and what an answer that does not come means:

    hook       asked                     an error, a time-out or silence means
    store      one plugin, at start      the agent does not start; later: no claims until it works
    claim      each plugin, in a loop    that source backs off, alone (full jitter, up to 60 s)
    validate   all, when a task comes    no: the task is refused with that reason
               and before each start
    execute    in order, first wins      NeverRan, or while it decides: never ran, with that reason;
                                         once it is awaited: its `reattach` tells what became of it
    report     the task's source         tried again with back-off; nothing is dropped
    schedule   one plugin, at start      the agent does not start
    reattach   the run's executor        tried again with back-off, for it does not mean lost
    serve      all                       one that ends or raises ends the agent, loudly
    inventory  all                       logged; that plugin's values are missing

`async def` and plain `def` are part of the contract, because pluggy cannot await: execute and
schedule are plain, all others are async. Both are checked when a plugin is loaded.

A plugin is a class named by an entry point of the group `agent_core`. Its name there is also its
settings table, its logger and the name stored with a task. It is built once per agent as
`Plugin(settings, context)`: an instance of its own `Settings` class (a frozen pydantic model; {} if
it has none) and a PluginContext. It implements a hook by a method marked `@hookimpl`. It imports
from `agent_core` only what that package's front page exports.
"""

from collections.abc import Awaitable, Sequence

import pluggy

from agent_core.execution import Execution
from agent_core.inventory import Inventory
from agent_core.models import (
    Claim,
    Demand,
    Event,
    Launch,
    Lost,
    NeverStarted,
    Receipt,
    Task,
    Verdict,
)
from agent_core.protocols import AgentHandle, Scheduler, Store

API_VERSION = 1  # a plugin may name the versions it knows: `api_versions = {1}`
GROUP = "agent_core"  # of entry points, and pluggy's project name
COMMANDS_GROUP = "agent_core.commands"  # of entry points that are commands of `remotegpu`

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Hooks:
    """A task's five verbs, then what stands around a run and beside the work."""

    # The life of a task.

    @hookspec
    async def store(self) -> Store:
        """Open the memory of the agent. Exactly one plugin; made before anything else."""
        raise NotImplementedError

    @hookspec
    async def claim(self, demand: Demand) -> Claim:
        """Bring work, at most what `demand` asks for. Only an agent that leaves at once cancels it.

        Raise Unreachable if the source does not answer. A task that cannot be read is brought
        with `unreadable` set and refused alone.
        """
        raise NotImplementedError

    @hookspec
    async def validate(self, task: Task, launch: Launch) -> Verdict:
        """May this run here? Every enabled validator must allow it."""
        raise NotImplementedError

    @hookspec
    def execute(self, launch: Launch) -> Awaitable[Execution] | None:
        """Start it, or None: not mine. Decides at once; the start itself is awaited.

        Nothing may begin before it is awaited: the start is stored, and the scratch directory made,
        in between. Raise NeverRan, from the awaitable, if no process began.
        """
        raise NotImplementedError

    @hookspec
    async def report(self, events: Sequence[Event]) -> Sequence[Receipt]:
        """Tell whoever gave the tasks; one receipt an event, by position. Must be repeatable.

        Asked only for events of tasks that this plugin claimed. Raise Unreachable for an outage.
        """
        raise NotImplementedError

    # Around a run.

    @hookspec
    def schedule(self) -> Scheduler:
        """Make the scheduler. Exactly one plugin."""
        raise NotImplementedError

    @hookspec
    async def reattach(self, launch: Launch, running: bool) -> Execution | NeverStarted | Lost:
        """Find a run again after a restart of the agent.

        Asked of the plugin whose `execute` took the start. `running` is False for a start whose
        answer was never stored: then NeverStarted is a possible answer, which means that it may
        be started anew. `launch` is built anew from the stored task. Raise if it cannot be told
        now. An executor without this hook has lost whatever ran when the agent ended.
        """
        raise NotImplementedError

    # Beside the work.

    @hookspec
    async def serve(self, agent: AgentHandle) -> None:
        """Live as long as the agent; cancelled at its end."""
        raise NotImplementedError

    @hookspec
    async def inventory(self) -> Inventory:
        """What this machine has."""
        raise NotImplementedError
