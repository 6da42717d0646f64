"""The tables: declared once by SQLModel, used by Core statements alone."""

from typing import cast

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, Table, Text, text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from agent_control_plane import fields

# A registry of our own: the agent in the same process has tables of the same names.
_registry = registry()


class Row(SQLModel, registry=_registry):
    """The base of every table here."""


class TaskRow(Row, table=True):
    """What somebody asked for, where it stands, and how it ended."""

    __tablename__ = "tasks"
    __table_args__ = (
        fields.partial("tasks_ready", "ready_for", "needs", "priority", "created_at", "seq"),
        fields.partial("tasks_wake", "wake_at"),
        Index("tasks_status", "status", "seq"),
        Index("tasks_user", "user", "seq"),
    )

    seq: int | None = Field(
        sa_column=Column(
            BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        default=None,
    )
    id: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    created_at: float = fields.seconds(optional=False)
    parent_id: str | None = fields.text(optional=True)

    # As it was described.
    name: str = fields.text()
    type: str = fields.text()
    command: str = fields.text()
    args: str = fields.text()  # JSON
    exec: int = fields.number()
    workdir: str = fields.text()
    env: str = fields.text()  # JSON
    timeout: float = fields.seconds(optional=False)
    priority: int = fields.number()
    max_retries: int = fields.number()
    retry_delay: float = fields.seconds(optional=False)
    machine_id: str = fields.text()
    group_id: str = fields.text()
    disconnect_grace: float | None = fields.seconds()
    on_lost_contact: str = fields.text()
    depends_on: str = fields.said("[]")  # JSON
    user: str = fields.said()
    labels: str = fields.said("{}")  # JSON
    resources: str = fields.said("{}")  # JSON, normalised
    executor: str = fields.said()
    needs: str = fields.said()  # of labels, resources and executor: see needs.py

    # Where it stands.
    status: str = fields.text()
    attempt_id: str | None = fields.text(optional=True)
    assigned_agent_id: str = fields.text()
    assigned_machine_id: str = fields.text()
    assigned_at: float | None = fields.seconds()
    started_at: float | None = fields.seconds()
    ended_at: float | None = fields.seconds()
    retry_count: int = fields.number()
    lost_attempts: int = fields.number()
    due_at: float | None = fields.seconds()
    held_as: str | None = fields.text(optional=True)
    watched_until: float | None = fields.seconds()
    cancel_requested_at: float | None = fields.seconds()
    cancel_reason: str = fields.text()
    progress: int | None = fields.number(optional=True)
    progress_message: str = fields.text()
    unmet: int = fields.counter()  # dependencies that are not completed yet
    awaited: int = fields.counter()  # 1 = others depend on it, and may not know of its end
    ready_for: str | None = fields.text(optional=True)
    wake_at: float | None = fields.seconds()

    # How it ended.
    exit_code: int | None = fields.number(optional=True)
    signal: str | None = fields.text(optional=True)
    reason: str | None = fields.text(optional=True)
    error_code: int = fields.number()
    error: str = fields.text()
    usage: str | None = fields.text(optional=True)  # JSON
    truncated: str | None = fields.text(optional=True)  # JSON


class AttemptRow(Row, table=True):
    """One grant of a task to an agent; its id is the fencing token."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index("attempts_task", "task_id"),
        Index("attempts_agent", "agent_id", "ended_at"),
        Index(
            "attempts_unbegun",
            "ended_at",
            sqlite_where=text("started_at IS NULL"),
            postgresql_where=text("started_at IS NULL"),
        ),
    )

    id: str = fields.text(key=True)
    task_id: str = fields.text()
    agent_id: str = fields.text()
    machine_id: str = fields.text()
    request_id: str = fields.text()
    older: int = fields.number()
    granted_at: float = fields.seconds(optional=False)
    lease_expires_at: float = fields.seconds(optional=False)
    regrant_at: float = fields.seconds(optional=False)
    started_at: float | None = fields.seconds()
    began_at: float | None = fields.seconds()  # the same moment by the agent's clock
    ended_at: float | None = fields.seconds()
    told_at: float | None = fields.seconds()  # the end by the agent's clock
    end: str | None = fields.text(optional=True)
    run_no: int = fields.counter()
    stream: str = fields.said()
    last_seq: int = fields.counter()
    logged: int = fields.counter()
    exit_code: int | None = fields.number(optional=True)
    signal: str | None = fields.text(optional=True)
    reason: str | None = fields.text(optional=True)
    error_code: int = fields.number()
    error: str = fields.text()
    usage: str | None = fields.text(optional=True)  # JSON
    truncated: str | None = fields.text(optional=True)  # JSON


class RunRow(Row, table=True):
    """A run that ended before the last one of its attempt; that one stands in the attempt's row."""

    __tablename__ = "runs"

    attempt_id: str = fields.text(key=True)
    run_no: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    task_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    agent_id: str = fields.text()
    machine_id: str = fields.text()
    started_at: float | None = fields.seconds()
    began_at: float | None = fields.seconds()  # by the agent's clock
    ended_at: float = fields.seconds(optional=False)
    told_at: float | None = fields.seconds()  # by the agent's clock
    exit_code: int | None = fields.number(optional=True)
    signal: str | None = fields.text(optional=True)
    reason: str | None = fields.text(optional=True)
    error_code: int = fields.number()
    error: str = fields.text()
    usage: str | None = fields.text(optional=True)  # JSON
    truncated: str | None = fields.text(optional=True)  # JSON
    stdout: bytes | None = Field(sa_column=Column(LargeBinary, nullable=True), default=None)
    stderr: bytes | None = Field(sa_column=Column(LargeBinary, nullable=True), default=None)


class DependencyRow(Row, table=True):
    """That a waiting task depends on another; gone once that one has ended, or the waiting has."""

    __tablename__ = "dependencies"
    __table_args__ = (Index("dependencies_on", "depends_on", "task_id"),)

    task_id: str = fields.text(key=True)
    depends_on: str = fields.text(key=True)


class OutputRow(Row, table=True):
    """What an attempt wrote to one stream, as far as it was kept; no row = nothing."""

    __tablename__ = "outputs"

    attempt_id: str = fields.text(key=True)
    stream: str = fields.text(key=True)
    task_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class StreamRow(Row, table=True):
    """How far the output of a run in progress has come; no row = nothing came while it ran."""

    __tablename__ = "streams"

    attempt_id: str = fields.text(key=True)
    run_no: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    stream: str = fields.text(key=True)
    task_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    next_offset: int = fields.number()  # bytes that the run printed, as far as we were told
    gone: int = fields.number()  # of these, what was never sent to us
    eof: int = fields.number()


class PieceRow(Row, table=True):
    """Bytes of such a stream; between two pieces there may be some that are gone."""

    __tablename__ = "pieces"

    attempt_id: str = fields.text(key=True)
    run_no: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    stream: str = fields.text(key=True)
    starts: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    ends: int = fields.number()
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class CommandRow(Row, table=True):
    """A word to an agent that it has not answered yet."""

    __tablename__ = "commands"
    __table_args__ = (
        Index("commands_agent", "agent_id", "created_at"),
        Index("commands_task", "task_id"),
    )

    id: str = fields.text(key=True)
    agent_id: str = fields.text()
    action: str = fields.text()
    task_id: str = fields.text()
    attempt_id: str = fields.text()
    reason: str = fields.text()
    created_at: float = fields.seconds(optional=False)
    told_at: float | None = fields.seconds()  # last; None = not yet


class AgentRow(Row, table=True):
    """An agent that was heard of."""

    __tablename__ = "agents"

    id: str = fields.text(key=True)
    machine_id: str = fields.text()
    version: str = fields.text()
    hostname: str = fields.text()
    ip_address: str = fields.text()
    agent_port: int | None = fields.number(optional=True)
    max_workers: int | None = fields.number(optional=True)  # None = it never said
    metrics: str | None = fields.text(optional=True)  # JSON
    capabilities: str = fields.said()  # words of the protocol that it speaks, by spaces
    has: str = fields.said()  # JSON of what its machine has in all, as it registered
    free: str = fields.said()  # JSON of what was free at its last claim
    registered_at: float | None = fields.seconds()
    last_seen_at: float = fields.seconds(optional=False)


class IdempotencyRow(Row, table=True):
    """The answer to a request that may come again."""

    __tablename__ = "idempotency"
    __table_args__ = (Index("idempotency_age", "created_at"),)

    key: str = fields.text(key=True)
    method: str = fields.text(key=True)
    path: str = fields.text(key=True)
    body: str = fields.text()  # its digest
    code: int = fields.number()
    status: int = fields.number()
    answer: str = fields.text()  # JSON of the data, or the message of a refusal
    created_at: float = fields.seconds(optional=False)


metadata = _registry.metadata


def _table(row: type[SQLModel]) -> Table:
    return cast("Table", getattr(row, "__table__"))  # noqa: B009  # SQLModel does not declare it


tasks = _table(TaskRow)
attempts = _table(AttemptRow)
runs = _table(RunRow)
dependencies = _table(DependencyRow)
outputs = _table(OutputRow)
streams = _table(StreamRow)
pieces = _table(PieceRow)
commands = _table(CommandRow)
agents = _table(AgentRow)
idempotency = _table(IdempotencyRow)
