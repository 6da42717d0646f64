"""What answers hold, for the OpenAPI document; tests hold every real answer against these."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent_control_plane import reasons

Time = str | None  # RFC 3339, UTC


class Answered(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Ok(Answered):
    status: Literal["ok"]


class Command(Answered):
    id: str
    action: str
    task_id: str
    attempt_id: str
    reason: str


class Heard(Answered):
    status: Literal["ok"]
    capabilities: list[str] = Field(
        default=[],
        description="not to older agents: the extensions now; none if it has to register",
    )
    commands: list[Command] = Field(default=[], description="not to older agents")


class Limits(Answered):
    events: int
    bytes: int


class Registered(Answered):
    status: Literal["ok"]
    machine_id: str
    capabilities: list[str] = Field(description="extensions that this server speaks")
    limits: Limits
    lease_sec: int
    time: str


class Truncated(Answered):
    stdout: int | None
    stderr: int | None


class Run(Answered):
    run_no: int
    attempt_id: str
    agent_id: str
    machine_id: str
    started_at: Time
    ended_at: Time
    agent_started_at: Time = Field(description="by the agent's clock")
    agent_ended_at: Time = Field(description="by the agent's clock")
    exit_code: int | None
    signal: str | None
    reason: str | None
    error_code: int
    error: str
    usage: dict[str, Any] | None
    truncated: Truncated | None


class TaskSummary(Answered):
    """A task without its output and runs."""

    id: str
    name: str
    type: str
    command: str
    args: list[str]
    exec: bool
    workdir: str
    env: dict[str, str]
    timeout: float
    priority: int
    max_retries: int
    retry_delay: float
    machine_id: str = Field(description="where it runs or ran; before that where it must run")
    group_id: str
    parent_id: str | None
    disconnect_grace: float
    on_lost_contact: str
    depends_on: list[str]
    user: str
    labels: dict[str, str]
    resources: dict[str, Any]
    executor: str
    status: str
    retry_count: int
    created_at: str
    assigned_at: Time
    started_at: Time
    ended_at: Time
    lease_expires_at: Time
    regrant_at: Time
    unreachable_since: Time = Field(description="its agent has not been heard of since the lease")
    next_run_at: Time
    waits_for: str | None = Field(description="in a few words, while it waits; explain says more")
    assigned_agent_id: str
    attempt_id: str | None
    cancel_requested_at: Time
    cancel_reason: str
    progress: int | None
    progress_message: str
    exit_code: int | None
    signal: str | None
    reason: str | None
    error_code: int
    error: str
    usage: dict[str, Any] | None
    truncated: Truncated | None


class TaskDetail(TaskSummary):
    stdout: str
    stderr: str
    runs: list[Run]


class TaskPage(Answered):
    tasks: list[TaskSummary]
    next_cursor: str | None


class Reason(Answered):
    machine_id: str = Field(description='"" = whatever the machine')
    code: Literal[tuple(reason.value for reason in reasons.Reason)]  # type: ignore[valid-type]
    text: str


class Explained(Answered):
    reasons: list[Reason] = Field(description="the most hopeful machine first, at most 100")


class Deleted(Answered):
    id: str


class LogPiece(Answered):
    data: str
    encoding: Literal["utf-8", "base64"]
    offset: int = Field(description="of the piece; greater than asked where bytes are gone")
    next_offset: int
    eof: bool
    dropped: int | None = Field(description="bytes gone before the piece; null = number unknown")
    sha256: str | None = Field(description="with eof: of all bytes that were kept")


class GrantedTask(Answered):
    """A task as an agent is told it; to an older agent with env_vars and error_msg as well."""

    model_config = ConfigDict(strict=True, extra="allow")

    id: str
    attempt_id: str
    name: str
    type: str
    command: str
    args: list[str]
    exec: bool
    workdir: str
    env: dict[str, str]
    timeout: float
    priority: int
    retry_count: int
    retry_delay: float
    max_retries: int
    status: Literal["assigned", "running"]
    created_at: str
    assigned_at: str
    lease_expires_at: str
    assigned_agent_id: str


class Claimed(Answered):
    tasks: list[GrantedTask]
    commands: list[Command] = Field(default=[], description="not to older agents")


class Started(Answered):
    task_id: str
    status: str
    attempt_id: str
    started_at: Time


class Renewed(Answered):
    task_id: str
    renewed: bool
    lease_sec: int
    lease_expires_at: str
    regrant_at: str


class Progressed(Answered):
    task_id: str
    progress: int | None


class EventResult(Answered):
    code: int
    message: str
    lease_sec: int | None = None
    lease_expires_at: str | None = None
    regrant_at: str | None = None


class EventsTaken(Answered):
    results: list[EventResult] = Field(description="one for each event, by position")
    commands: list[Command]


class Logged(Answered):
    next_offset: int
    watched: bool = Field(description="somebody reads it as it comes")


class Moved(Answered):
    task_id: str
    status: str
