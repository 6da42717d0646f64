"""The tables as they were before there were revisions; a SQLite file says user_version 1."""

from alembic import op
from sqlalchemy import UniqueConstraint

from agent_control_plane.migrations.columns import counted, data, index, number, seconds, text

revision = "0001"
down_revision = None


def upgrade() -> None:
    _tasks()
    _attempts()
    _others()


def _tasks() -> None:
    op.create_table(
        "tasks",
        counted("seq"),
        text("id"),
        seconds("created_at"),
        text("parent_id", optional=True),
        text("name"),
        text("type"),
        text("command"),
        text("args"),
        number("exec"),
        text("workdir"),
        text("env"),
        seconds("timeout"),
        number("priority"),
        number("max_retries"),
        seconds("retry_delay"),
        text("machine_id"),
        text("group_id"),
        seconds("disconnect_grace", optional=True),
        text("on_lost_contact"),
        text("status"),
        text("attempt_id", optional=True),
        text("assigned_agent_id"),
        text("assigned_machine_id"),
        seconds("assigned_at", optional=True),
        seconds("started_at", optional=True),
        seconds("ended_at", optional=True),
        number("retry_count"),
        number("lost_attempts"),
        seconds("due_at", optional=True),
        seconds("cancel_requested_at", optional=True),
        text("cancel_reason"),
        number("progress", optional=True),
        text("progress_message"),
        text("ready_for", optional=True),
        seconds("wake_at", optional=True),
        number("exit_code", optional=True),
        text("signal", optional=True),
        text("reason", optional=True),
        number("error_code"),
        text("error"),
        text("usage", optional=True),
        text("truncated", optional=True),
        UniqueConstraint("id"),
    )
    index(
        "tasks_ready",
        "tasks",
        "ready_for",
        "priority",
        "created_at",
        "seq",
        where="ready_for IS NOT NULL",
    )
    index("tasks_status", "tasks", "status", "seq")
    index("tasks_wake", "tasks", "wake_at", where="wake_at IS NOT NULL")


def _attempts() -> None:
    op.create_table(
        "attempts",
        text("id", key=True),
        text("task_id"),
        text("agent_id"),
        text("machine_id"),
        text("request_id"),
        number("older"),
        seconds("granted_at"),
        seconds("lease_expires_at"),
        seconds("regrant_at"),
        seconds("started_at", optional=True),
        seconds("ended_at", optional=True),
        text("end", optional=True),
        number("exit_code", optional=True),
        text("signal", optional=True),
        text("reason", optional=True),
        number("error_code"),
        text("error"),
        text("usage", optional=True),
        text("truncated", optional=True),
    )
    index("attempts_agent", "attempts", "agent_id", "ended_at")
    index("attempts_task", "attempts", "task_id")
    index("attempts_unbegun", "attempts", "ended_at", where="started_at IS NULL")
    op.create_table(
        "outputs",
        text("attempt_id", key=True),
        text("stream", key=True),
        text("task_id"),
        data("data"),
    )
    index("ix_outputs_task_id", "outputs", "task_id")


def _others() -> None:
    op.create_table(
        "agents",
        text("id", key=True),
        text("machine_id"),
        text("version"),
        text("hostname"),
        text("ip_address"),
        number("agent_port", optional=True),
        number("max_workers", optional=True),
        text("metrics", optional=True),
        seconds("registered_at", optional=True),
        seconds("last_seen_at"),
    )
    op.create_table(
        "idempotency",
        text("key", key=True),
        text("method", key=True),
        text("path", key=True),
        text("body"),
        number("code"),
        number("status"),
        text("answer"),
        seconds("created_at"),
    )
    index("idempotency_age", "idempotency", "created_at")
