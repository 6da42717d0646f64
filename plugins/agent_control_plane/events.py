"""What can happen to a task on the server: calls of agents, users' words, and time."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from agent_control_plane.states import State


class Grant(NamedTuple):
    """An agent claimed it."""

    attempt_id: str  # the new one
    agent_id: str
    machine_id: str
    request_id: str = ""  # of the claim; "" = that claim cannot be repeated
    older: bool = False  # the agent speaks no protocol of ours: retries are the server's


class Start(NamedTuple):
    """The run began."""

    agent_id: str
    run_no: int = 0  # 0 = not told
    began_at: float | None = None  # by the agent's clock
    behind: bool = False  # the run did not wait for our answer


class Renew(NamedTuple):
    """The agent still holds it."""

    agent_id: str


class Progress(NamedTuple):
    """How far it is."""

    agent_id: str
    percent: int | None = None
    message: str = ""


class Complete(NamedTuple):
    """The attempt's end, with what the agent says of it."""

    agent_id: str
    status: State  # completed, failed or cancelled
    exit_code: int | None = None
    signal: str | None = None
    reason: str | None = None
    error_code: int = 0
    error: str = ""
    usage: str | None = None  # JSON
    truncated: str | None = None  # JSON
    told_at: float | None = None  # by the agent's clock


class Run(NamedTuple):
    """A run ended and another one of the same attempt follows."""

    agent_id: str
    run_no: int
    exit_code: int | None = None
    signal: str | None = None
    reason: str | None = None
    error_code: int = 0
    error: str = ""
    usage: str | None = None  # JSON
    truncated: str | None = None  # JSON
    next_run_at: float | None = None  # by our clock
    told_at: float | None = None  # by the agent's clock


class Shift(NamedTuple):
    """The run was suspended, or goes on."""

    agent_id: str
    status: State  # suspended or running


class Release(NamedTuple):
    """Given back: it has not begun."""

    agent_id: str
    reason: str = ""


class Cancel(NamedTuple):
    """A user's word."""

    reason: str = ""


class Describe(NamedTuple):
    """A user describes it anew."""

    columns: Mapping[str, Any]


class Settle(NamedTuple):
    """A task that it depends on has ended."""

    completed: bool
    words: str = ""  # if not: which one, and why


class Tick(NamedTuple):
    """Time passed."""


Event = (
    Grant
    | Start
    | Renew
    | Progress
    | Complete
    | Run
    | Shift
    | Release
    | Cancel
    | Describe
    | Settle
    | Tick
)
