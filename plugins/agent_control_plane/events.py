"""What can happen to a task on the server: calls of agents, users' words, and time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent_control_plane.states import State


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """An agent claimed it."""

    attempt_id: str  # the new one
    agent_id: str
    machine_id: str
    request_id: str = ""  # of the claim; "" = that claim cannot be repeated
    older: bool = False  # the agent speaks no protocol of ours: retries are the server's


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The run began."""

    agent_id: str
    run_no: int = 0  # 0 = not told
    began_at: float | None = None  # by the agent's clock
    behind: bool = False  # the run did not wait for our answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Renew:
    """The agent still holds it."""

    agent_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far it is."""

    agent_id: str
    percent: int | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Complete:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """The run was suspended, or goes on."""

    agent_id: str
    status: State  # suspended or running


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """Given back: it has not begun."""

    agent_id: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """A user's word."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Describe:
    """A user describes it anew."""

    columns: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settle:
    """A task that it depends on has ended."""

    completed: bool
    words: str = ""  # if not: which one, and why


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
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
