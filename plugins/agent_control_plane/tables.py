"""The tables: declared once by SQLModel, used by Core statements alone."""

from typing import Any, cast

from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, Table, Text, text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

# A registry of our own: the agent in the same process has tables of the same names.
_registry = registry()


class Row(SQLModel, registry=_registry):
    """The base of every table here."""


def _text(*, key: bool = False, optional: bool = False) -> Any:
    return Field(
        sa_column=Column(Text, primary_key=key, nullable=optional), default=None if optional else ""
    )


def _number(*, optional: bool = False) -> Any:
    return Field(sa_column=Column(BigInteger, nullable=optional), default=None if optional else 0)


def _counter() -> Any:
    """A number that begins at 0, also in rows that are older than the column."""
    return Field(sa_column=Column(BigInteger, nullable=False, server_default="0"), default=0)


def _said(first: str = "") -> Any:
    """Text that begins so, also in rows that are older than the column."""
    return Field(sa_column=Column(Text, nullable=False, server_default=first), default=first)


def _seconds(*, optional: bool = True) -> Any:
    """Seconds, or a moment as seconds since the epoch."""
    return Field(sa_column=Column(Float(53), nullable=optional), default=None if optional else 0.0)


def _partial(name: str, first: str, *more: str) -> Index:
    """An index of the rows where `first` is set: final tasks cost it nothing."""
    where = text(f"{first} IS NOT NULL")
    return Index(name, first, *more, sqlite_where=where, postgresql_where=where)


class TaskRow(Row, table=True):
    """What somebody asked for, where it stands, and how it ended."""

    __tablename__ = "tasks"
    __table_args__ = (
        _partial("tasks_ready", "ready_for", "needs", "priority", "created_at", "seq"),
        _partial("tasks_wake", "wake_at"),
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
    created_at: float = _seconds(optional=False)
    parent_id: str | None = _text(optional=True)

    # As it was described.
    name: str = _text()
    type: str = _text()
    command: str = _text()
    args: str = _text()  # JSON
    exec: int = _number()
    workdir: str = _text()
    env: str = _text()  # JSON
    timeout: float = _seconds(optional=False)
    priority: int = _number()
    max_retries: int = _number()
    retry_delay: float = _seconds(optional=False)
    machine_id: str = _text()
    group_id: str = _text()
    disconnect_grace: float | None = _seconds()
    on_lost_contact: str = _text()
    depends_on: str = _said("[]")  # JSON
    user: str = _said()
    labels: str = _said("{}")  # JSON
    resources: str = _said("{}")  # JSON, normalised
    executor: str = _said()
    needs: str = _said()  # of labels, resources and executor: see needs.py

    # Where it stands.
    status: str = _text()
    attempt_id: str | None = _text(optional=True)
    assigned_agent_id: str = _text()
    assigned_machine_id: str = _text()
    assigned_at: float | None = _seconds()
    started_at: float | None = _seconds()
    ended_at: float | None = _seconds()
    retry_count: int = _number()
    lost_attempts: int = _number()
    due_at: float | None = _seconds()
    held_as: str | None = _text(optional=True)
    watched_until: float | None = _seconds()
    cancel_requested_at: float | None = _seconds()
    cancel_reason: str = _text()
    progress: int | None = _number(optional=True)
    progress_message: str = _text()
    unmet: int = _counter()  # dependencies that are not completed yet
    awaited: int = _counter()  # 1 = others depended on it, and may not have been told of its end
    ready_for: str | None = _text(optional=True)
    wake_at: float | None = _seconds()

    # How it ended.
    exit_code: int | None = _number(optional=True)
    signal: str | None = _text(optional=True)
    reason: str | None = _text(optional=True)
    error_code: int = _number()
    error: str = _text()
    usage: str | None = _text(optional=True)  # JSON
    truncated: str | None = _text(optional=True)  # JSON


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

    id: str = _text(key=True)
    task_id: str = _text()
    agent_id: str = _text()
    machine_id: str = _text()
    request_id: str = _text()
    older: int = _number()
    granted_at: float = _seconds(optional=False)
    lease_expires_at: float = _seconds(optional=False)
    regrant_at: float = _seconds(optional=False)
    started_at: float | None = _seconds()
    began_at: float | None = _seconds()  # the same moment by the agent's clock
    ended_at: float | None = _seconds()
    told_at: float | None = _seconds()  # the end by the agent's clock
    end: str | None = _text(optional=True)
    run_no: int = _counter()
    stream: str = _said()
    last_seq: int = _counter()
    logged: int = _counter()
    exit_code: int | None = _number(optional=True)
    signal: str | None = _text(optional=True)
    reason: str | None = _text(optional=True)
    error_code: int = _number()
    error: str = _text()
    usage: str | None = _text(optional=True)  # JSON
    truncated: str | None = _text(optional=True)  # JSON


class RunRow(Row, table=True):
    """A run that ended before the last one of its attempt; that one stands in the attempt's row."""

    __tablename__ = "runs"

    attempt_id: str = _text(key=True)
    run_no: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    task_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    agent_id: str = _text()
    machine_id: str = _text()
    started_at: float | None = _seconds()
    began_at: float | None = _seconds()  # by the agent's clock
    ended_at: float = _seconds(optional=False)
    told_at: float | None = _seconds()  # by the agent's clock
    exit_code: int | None = _number(optional=True)
    signal: str | None = _text(optional=True)
    reason: str | None = _text(optional=True)
    error_code: int = _number()
    error: str = _text()
    usage: str | None = _text(optional=True)  # JSON
    truncated: str | None = _text(optional=True)  # JSON
    stdout: bytes | None = Field(sa_column=Column(LargeBinary, nullable=True), default=None)
    stderr: bytes | None = Field(sa_column=Column(LargeBinary, nullable=True), default=None)


class DependencyRow(Row, table=True):
    """That a waiting task depends on another; gone once that one has ended, or the waiting has."""

    __tablename__ = "dependencies"
    __table_args__ = (Index("dependencies_on", "depends_on", "task_id"),)

    task_id: str = _text(key=True)
    depends_on: str = _text(key=True)


class OutputRow(Row, table=True):
    """What an attempt wrote to one stream, as far as it was kept; no row = nothing."""

    __tablename__ = "outputs"

    attempt_id: str = _text(key=True)
    stream: str = _text(key=True)
    task_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class StreamRow(Row, table=True):
    """How far the output of a run in progress has come; no row = nothing came while it ran."""

    __tablename__ = "streams"

    attempt_id: str = _text(key=True)
    run_no: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    stream: str = _text(key=True)
    task_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    next_offset: int = _number()  # bytes that the run printed, as far as we were told
    gone: int = _number()  # of these, what was never sent to us
    eof: int = _number()


class PieceRow(Row, table=True):
    """Bytes of such a stream; between two pieces there may be some that are gone."""

    __tablename__ = "pieces"

    attempt_id: str = _text(key=True)
    run_no: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    stream: str = _text(key=True)
    starts: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    ends: int = _number()
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class CommandRow(Row, table=True):
    """A word to an agent that it has not answered yet."""

    __tablename__ = "commands"
    __table_args__ = (
        Index("commands_agent", "agent_id", "created_at"),
        Index("commands_task", "task_id"),
    )

    id: str = _text(key=True)
    agent_id: str = _text()
    action: str = _text()
    task_id: str = _text()
    attempt_id: str = _text()
    reason: str = _text()
    created_at: float = _seconds(optional=False)
    told_at: float | None = _seconds()  # last; None = not yet


class AgentRow(Row, table=True):
    """An agent that was heard of."""

    __tablename__ = "agents"

    id: str = _text(key=True)
    machine_id: str = _text()
    version: str = _text()
    hostname: str = _text()
    ip_address: str = _text()
    agent_port: int | None = _number(optional=True)
    max_workers: int | None = _number(optional=True)  # None = it never said
    metrics: str | None = _text(optional=True)  # JSON
    capabilities: str = _said()  # words of the protocol that it speaks, by spaces
    has: str = _said()  # JSON of what its machine has in all, as it registered
    free: str = _said()  # JSON of what was free at its last claim
    registered_at: float | None = _seconds()
    last_seen_at: float = _seconds(optional=False)


class IdempotencyRow(Row, table=True):
    """The answer to a request that may come again."""

    __tablename__ = "idempotency"
    __table_args__ = (Index("idempotency_age", "created_at"),)

    key: str = _text(key=True)
    method: str = _text(key=True)
    path: str = _text(key=True)
    body: str = _text()  # its digest
    code: int = _number()
    status: int = _number()
    answer: str = _text()  # JSON of the data, or the message of a refusal
    created_at: float = _seconds(optional=False)


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
