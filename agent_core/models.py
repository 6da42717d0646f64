"""What moves through the agent, as frozen data: tasks, launches, outcomes, verdicts, events."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, NamedTuple

from agent_core.amended import amended
from agent_core.api.resources import NO_ROOM, NOTHING, Device, Free, Resources
from agent_core.api.wire import Answer, Code, Json
from agent_core.clock import Clock, Instant
from agent_core.lifecycle import EventKind, Status
from agent_core.signals import Signal

Stream = Literal["stdout", "stderr"]
NO_DEVICES: Mapping["Key", Sequence[str]] = MappingProxyType({})
PRIORITY_DEFAULT = 5  # 1 is the most urgent, 10 the least
PREEMPTION_DIFFERENCE = 3  # in priority, from which on a running task makes room for a waiting one
TIMEOUT_DEFAULT = 3600.0  # seconds
RETRY_DELAY_DEFAULT = 60.0  # seconds


class Key(NamedTuple):
    """A task on this agent: the same pair again is the same task, another attempt another row."""

    task_id: str
    attempt_id: str  # the server's grant (its fencing token); "" for a local task


class Reason(StrEnum):
    """Why a run, or a task that never ran, ended."""

    EXITED = "exited"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    REFUSED = "refused"
    NEVER_RAN = "never_ran"
    LOST = "lost"
    OOM = "oom"
    DEPENDENCY = "dependency"
    RELEASED = "released"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Until when an attempt is ours without another word from the server."""

    until: Instant
    # Seconds past `until` by which its run must have ended, where it may never overlap with the
    # next one (`on_lost_contact: stop`). None: it goes on until it hears of another grant.
    stop_after: float | None = None

    def over(self, clock: Clock) -> bool:
        return self.until.age(clock) >= 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a run used; None where it could not be read."""

    wall_s: float | None = None
    user_s: float | None = None
    system_s: float | None = None
    max_rss_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended, or why it never began."""

    reason: Reason
    exit_code: int | None = None  # None where nothing ran; 128+n for a signal, 124 for a timeout
    signal: str | None = None  # name, "SIGKILL"
    error_code: int = Code.OK  # business code, for every end that is no plain exit
    error: str = ""  # one sentence for people
    stdout: bytes = b""  # what was kept: head, marker, tail
    stderr: bytes = b""
    dropped_stdout: int | None = 0  # bytes not kept; None = some, number unknown
    dropped_stderr: int | None = 0
    usage: Usage | None = None
    ended_at: float | None = None  # wall, seconds since the epoch

    @property
    def success(self) -> bool:
        return self.reason is Reason.EXITED and self.exit_code == 0


@dataclass(frozen=True, kw_only=True)  # no slots: see amended.py
class Task:
    """What somebody asked for, and where it stands.

    The first group never changes; the second is changed by moves.py alone.
    """

    id: str
    command: str
    attempt_id: str = ""
    source: str = ""  # the plugin that claimed it and reports it; "" = submitted here
    name: str = ""
    type: str = "shell"  # shell | python | script; anything else runs as shell
    args: tuple[str, ...] = ()
    exec: bool = False  # run [command, *args] directly even with no args
    workdir: str = ""  # absolute; "" = the run's private scratch directory
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float = TIMEOUT_DEFAULT  # seconds
    priority: int = PRIORITY_DEFAULT
    max_retries: int = 0
    retry_delay: float = RETRY_DELAY_DEFAULT  # seconds
    created_at: float = 0.0  # wall, seconds since the epoch
    user: str = ""  # who submitted it
    depends_on: tuple[str, ...] = ()  # ids; of a local task alone: a server resolves its own
    labels: Mapping[str, str] = field(default_factory=dict)  # that this machine must have
    resources: Resources = NOTHING
    wanted_executor: str = ""  # the only plugin that may run it; "" = the first that takes it
    unreadable: str = ""  # why its description cannot be used; it is refused with these words
    extra: Mapping[str, Json] = field(default_factory=dict)  # fields we do not know, kept

    status: Status = Status.PENDING
    lease: Lease | None = None  # None for a local task
    due_at: float = 0.0  # wall; not before
    retry_count: int = 0
    run_no: int = 0  # runs that really began
    start_id: str = ""  # of the current or last start
    assigned_at: Instant | None = None  # when that start was stored
    started_at: Instant | None = None  # when the current or last run began
    executor: str = ""  # the plugin that runs it
    devices: tuple[str, ...] = ()  # UUIDs of the GPUs that the current or last start was given
    handle: Mapping[str, Json] = field(default_factory=dict)  # by which it knows the run again
    outcome: Outcome | None = None  # of the last run, once it ended
    key: Key = field(init=False, repr=False, compare=False)  # asked for dozens of times a run

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Key(self.id, self.attempt_id))


class TaskRun(NamedTuple):
    """One run on record."""

    run_no: int
    started_at: float | None  # wall
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A task made ready to start: what an executor needs and a validator judges."""

    start_id: str
    key: Key
    run_no: int  # the number this run will have
    argv: tuple[str, ...]
    text: str  # the command line as it was given, for people and patterns
    env: Mapping[str, str]  # the task's own and REMOTEGPU_*; the executor adds the site's
    cwd: str  # absolute
    scratch: str  # the run's private directory; made before it begins, removed after it
    progress: str  # path that REMOTEGPU_PROGRESS names
    script: tuple[str, str] | None = None  # path and text of a script to be written first
    timeout: float = TIMEOUT_DEFAULT  # seconds
    executor: str = ""  # the only plugin that may take it; "" = the first that does
    resources: Resources = NOTHING
    devices: tuple[str, ...] = ()  # UUIDs of its GPUs, which stand in its environment already
    stored_at: Instant | None = None  # when the start was stored, for reattach
    handle: Mapping[str, Json] = field(default_factory=dict)  # of the run, for reattach
    program: str = ""  # path of the file to execute, as a validator found it; "": argv[0] says

    @property
    def words(self) -> tuple[str, ...]:
        """argv for a wrapper that looks its program up by the first word."""
        return (self.program, *self.argv[1:]) if self.program else self.argv


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A validator's word. Silence, an error or a time-out counts as a denial."""

    allowed: bool
    rule: str = ""  # the rule that decided, as the site wrote it
    reason: str = ""  # one sentence, for the person who submitted the task
    argv: tuple[str, ...] = ()  # what is to be executed instead of the launch's own; (): that
    program: str = ""  # the file that is to be executed, absolute; "": as argv[0] says

    @classmethod
    def allow(cls, rule: str = "", *, argv: tuple[str, ...] = (), program: str = "") -> "Verdict":
        """Consent; with `argv` and `program` to exactly this, which core executes then."""
        return cls(allowed=True, rule=rule, argv=argv, program=program)

    @classmethod
    def deny(cls, reason: str, rule: str = "", *, argv: tuple[str, ...] = ()) -> "Verdict":
        """Refusal; `argv` is what was judged, for people."""
        return cls(allowed=False, rule=rule, reason=reason, argv=argv)


@dataclass(frozen=True, kw_only=True)  # no slots: see amended.py
class Event:
    """What is told to whoever gave the task, stored in one transaction with its move."""

    kind: EventKind
    key: Key
    source: str  # the plugin that reports it
    run_no: int
    at: float  # wall, when it happened
    seq: int = 0  # given by the store, rising, never used twice
    started_at: float | None = None  # wall, of the run it speaks of
    next_run_at: float | None = None  # wall, with RUN
    outcome: Outcome | None = None  # with RUN and COMPLETE

    def numbered(self, seq: int) -> "Event":
        """This one, under the number that the store gave it."""
        return amended(self, {"seq": seq})


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What happened to one task, as a store keeps it: all of it, or nothing."""

    before: Task  # the task must still have its status and its start id
    changes: Mapping[str, object]  # names of Task's second group, with their new values
    events: Sequence[Event] = ()  # in order; their seq is given by the store
    ended_run: TaskRun | None = None  # before another follows


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What became of one reported event."""

    seq: int
    answer: Answer
    code: int = Code.OK
    message: str = ""
    retry_after: float | None = None  # seconds, with RETRY


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """How much work the agent could take now, and how a source hears that this has changed."""

    slots: int  # at most this many tasks: to begin at once, or to have ready; 0 = none
    # Of these, such as may wait here for long, for nothing says that a slot will soon be free: only
    # for sources that are asked from time to time. Another machine may be idle.
    standby: int = 0
    free: Free = NO_ROOM  # what such a task would find; slots in which nothing runs
    # With no free slot: a task of this priority or a more urgent one would still begin at once,
    # because a running one would make room.
    urgent_at_most: int | None = None
    changed: Signal = field(default_factory=Signal, compare=False)  # sent when it is another
    # What is ready here is soon used up: who gathers demand for a moment should not do so for long.
    short: bool = True
    hurry: Signal = field(default_factory=Signal, compare=False)  # sent when it runs short, or idle
    # What it is by now: a source whose question hangs asks anew with it and need not return.
    again: "Callable[[], Demand] | None" = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What a source brought."""

    tasks: Sequence[Task] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  # saved with them, one transaction
    ask_again: float = 0.0  # seconds until asking again is worth it; 0 = there may be more
    # What waits here in vain is given back (a release event): the source has others for it.
    takes_back: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run says it is."""

    percent: int | None = None  # 0–100; None: not told, and never invented
    message: str = ""  # the task's own words, else its last line of output


class Running(NamedTuple):
    """A slot that is taken, as a scheduler sees it."""

    task: Task  # as it was when it took the slot
    devices: tuple[Device, ...] = ()  # that it holds
    since: float = 0.0  # wall, when it took the slot
    ending: bool = False  # it is told to end already: its room is coming


class Plan(NamedTuple):
    """A scheduler's answer."""

    start: Sequence[Task] = ()  # in order; together they fit what is free
    preempt: Sequence[Key] = ()  # running ones that are to make room, the least urgent first
    # UUIDs of the free devices that each of `start` gets; for whom none stand here: the smallest.
    devices: Mapping[Key, Sequence[str]] = NO_DEVICES


class Piece(NamedTuple):
    """Some of what a run has printed on one stream."""

    offset: int  # of its first byte in the stream; what was dropped before it is skipped
    data: bytes
    total: int  # bytes that the run has printed so far, as far as is known


class NeverStarted:
    """reattach's answer: that start is known to have begun nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """reattach's answer: whatever became of that start, nobody can know it any more."""

    reason: str
