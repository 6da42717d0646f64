"""The framework of the remotegpu agent: what a plugin may import, on one screen."""

from typing import TYPE_CHECKING, Any

from agent_core.api import resources, wire
from agent_core.api.resources import Device, Free, Resources
from agent_core.api.wire import Answer, Code, Json
from agent_core.backoff import Backoff, pause
from agent_core.clock import Clock, Instant
from agent_core.errors import (
    Conflict,
    NeverRan,
    NotAccepted,
    PluginError,
    Refused,
    RemoteGPUError,
    SettingsError,
    StoreError,
    StoreFull,
    StoreUnusable,
    Unreachable,
)
from agent_core.execution import Ahead, Execution
from agent_core.hookspecs import API_VERSION, hookimpl
from agent_core.inventory import Gpu, Inventory
from agent_core.lifecycle import FINAL, HELD, EventKind, Status
from agent_core.locks import HeldElsewhere, hold
from agent_core.models import (
    PREEMPTION_DIFFERENCE,
    Change,
    Claim,
    Demand,
    Event,
    Key,
    Launch,
    Lease,
    Lost,
    NeverStarted,
    Outcome,
    Piece,
    Plan,
    Progress,
    Reason,
    Receipt,
    Running,
    Stream,
    Task,
    TaskRun,
    Usage,
    Verdict,
)
from agent_core.program import find_program, never_ran, site_path
from agent_core.protocols import AgentHandle, Held, PluginContext, Scheduler, Store
from agent_core.removal import remove
from agent_core.signals import Signal

if TYPE_CHECKING:
    from agent_core.child import ChildExecution, signal_name
    from agent_core.sections import Duration, SecretText, Section, Text

__version__ = "0.1.0"
_SECTIONS = frozenset({"Duration", "SecretText", "Section", "Text"})
_CHILD = frozenset({"ChildExecution", "signal_name"})


if not TYPE_CHECKING:  # a type checker must go on refusing names that are not here

    def __getattr__(name: str) -> Any:
        """What settings are made of, once asked for: client commands start without pydantic."""
        if name in _SECTIONS:
            from agent_core import sections  # noqa: PLC0415

            return getattr(sections, name)
        if name in _CHILD:  # what executors are made of, likewise
            from agent_core import child  # noqa: PLC0415

            return getattr(child, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "API_VERSION",
    "FINAL",
    "HELD",
    "PREEMPTION_DIFFERENCE",
    "AgentHandle",
    "Ahead",
    "Answer",
    "Backoff",
    "Change",
    "ChildExecution",
    "Claim",
    "Clock",
    "Code",
    "Conflict",
    "Demand",
    "Device",
    "Duration",
    "Event",
    "EventKind",
    "Execution",
    "Free",
    "Gpu",
    "Held",
    "HeldElsewhere",
    "Instant",
    "Inventory",
    "Json",
    "Key",
    "Launch",
    "Lease",
    "Lost",
    "NeverRan",
    "NeverStarted",
    "NotAccepted",
    "Outcome",
    "Piece",
    "Plan",
    "PluginContext",
    "PluginError",
    "Progress",
    "Reason",
    "Receipt",
    "Refused",
    "RemoteGPUError",
    "Resources",
    "Running",
    "Scheduler",
    "SecretText",
    "Section",
    "SettingsError",
    "Signal",
    "Status",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreUnusable",
    "Stream",
    "Task",
    "TaskRun",
    "Text",
    "Unreachable",
    "Usage",
    "Verdict",
    "__version__",
    "find_program",
    "hold",
    "hookimpl",
    "never_ran",
    "pause",
    "remove",
    "resources",
    "signal_name",
    "site_path",
    "wire",
]
