"""The tables of the agent's database, as they are now; `steps` holds how they came to be."""

from typing import Any

from sqlalchemy import REAL, Index, MetaData, Text, text
from sqlmodel import Field, SQLModel

WAITS = text("status = 'pending'")  # spelled out: a partial index serves no bound parameter


def _key() -> Any:
    return Field(primary_key=True, sa_type=Text)


def _text(default: str = "") -> Any:
    return Field(default=default, sa_type=Text)


def _maybe_text() -> Any:
    return Field(default=None, sa_type=Text)


def _real(default: float | None = None) -> Any:
    return Field(default=default, sa_type=REAL)


class Table(SQLModel):
    """Tables of this plugin alone: another plugin in the process has its own of any name."""

    metadata = MetaData()


class OutcomeColumns(SQLModel):
    """How a run ended; `reason` is NULL while it has not.

    Named first among a table's bases, these columns come last in a row (pydantic's order), so
    that a read of the others does not walk through the output.
    """

    reason: str | None = _maybe_text()
    exit_code: int | None = None
    signal: str | None = _maybe_text()
    error_code: int | None = None
    error: str | None = _maybe_text()
    dropped_stdout: int | None = None  # NULL: some, number unknown
    dropped_stderr: int | None = None
    usage: str | None = _maybe_text()  # JSON
    ended_at: float | None = _real()
    stdout: bytes | None = None
    stderr: bytes | None = None


class TaskColumns(SQLModel):
    """A task and where it stands. Times are epoch seconds, `_boottime` seconds since a boot."""

    task_id: str = _key()
    attempt_id: str = _key()
    source: str = _text()
    name: str = _text()
    type: str = _text()
    command: str = _text()
    args: str = _text()  # JSON list
    exec: bool = False
    workdir: str = _text()
    env: str = _text()  # JSON object
    timeout: float = _real(0.0)
    priority: int = 0
    max_retries: int = 0
    retry_delay: float = _real(0.0)
    created_at: float = _real(0.0)
    unreadable: str = _text()
    extra: str = _text()  # JSON object
    status: str = _text()
    lease: float | None = _real()
    lease_boottime: float | None = _real()
    lease_boot_id: str | None = _maybe_text()
    lease_stop_after: float | None = _real()
    due_at: float = _real(0.0)
    retry_count: int = 0
    run_no: int = 0
    start_id: str = _text()
    assigned_at: float | None = _real()
    assigned_at_boottime: float | None = _real()
    assigned_at_boot_id: str | None = _maybe_text()
    started_at: float | None = _real()
    started_at_boottime: float | None = _real()
    started_at_boot_id: str | None = _maybe_text()
    executor: str = _text()
    handle: str = _text()  # JSON object
    user: str = _text()
    depends_on: str = _text()  # JSON list
    labels: str = _text()  # JSON object
    resources: str = _text()  # JSON object, the wire's form
    wanted_executor: str = _text()
    devices: str = _text()  # JSON list


class TaskRow(OutcomeColumns, TaskColumns, Table, table=True):
    """A task with the outcome of its last run."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("tasks_by_status", "status", "created_at", "task_id", "attempt_id"),
        Index(
            "tasks_by_turn",
            "priority",
            "created_at",
            "task_id",
            "attempt_id",
            "due_at",
            "status",  # the same in all of it, but without it SQLite looks into the table
            sqlite_where=WAITS,
        ),
        Index("tasks_by_due_time", "due_at", "status", sqlite_where=WAITS),
    )


class RunColumns(SQLModel):
    """Which run it is."""

    task_id: str = _key()
    attempt_id: str = _key()
    run_no: int = Field(primary_key=True)
    started_at: float | None = _real()


class RunRow(OutcomeColumns, RunColumns, Table, table=True):
    """A run that ended and was followed by another."""

    __tablename__ = "runs"


class EventColumns(SQLModel):
    """An event without its outcome, which stands with its task or its run and never changes."""

    kind: str = _text()
    task_id: str = _text()
    attempt_id: str = _text()
    source: str = _text()
    run_no: int = 0
    at: float = _real(0.0)
    started_at: float | None = _real()
    next_run_at: float | None = _real()


class OutboxRow(EventColumns, Table, table=True):
    """What is still to be told. AUTOINCREMENT: a number used twice would be taken for a repeat."""

    __tablename__ = "outbox"
    __table_args__ = ({"sqlite_autoincrement": True},)

    seq: int | None = Field(default=None, primary_key=True)


class DeadLetterRow(EventColumns, Table, table=True):
    """What was refused for ever, with the answer."""

    __tablename__ = "dead_letters"

    seq: int = Field(primary_key=True)
    code: int = 0
    message: str = _text()


class FactRow(Table, table=True):
    """What plugins remember."""

    __tablename__ = "facts"

    name: str = _key()
    value: str = _text()


class StreamRow(Table, table=True):
    """One row: the random id that was made with this database."""

    __tablename__ = "stream"

    id: str = _key()
