"""Runs, live output, commands, dependencies, and what a task needs of a machine.

This revision is of the version being built: a new column or table in tables.py gets its line here
too, with `before` for a NOT NULL column of a table that 0001 knows. tests/…/test_schema.py says
what is missing. Once a version is released its revisions never change again.
"""

from alembic import op

from agent_control_plane.migrations.columns import add, data, index, number, seconds, text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _tasks()
    _who_holds_them()
    _runs()
    _dependencies()
    _live_output()
    _commands()


def _tasks() -> None:
    add(
        "tasks",
        text("depends_on", before="[]"),
        text("user", before=""),
        text("labels", before="{}"),
        text("resources", before="{}"),
        text("executor", before=""),
        text("needs", before=""),
        text("held_as", optional=True),
        seconds("watched_until", optional=True),
        number("unmet", before=0),
        number("awaited", before=0),
    )
    op.drop_index("tasks_ready", "tasks")
    index(
        "tasks_ready",
        "tasks",
        "ready_for",
        "needs",
        "priority",
        "created_at",
        "seq",
        where="ready_for IS NOT NULL",
    )
    index("tasks_user", "tasks", "user", "seq")


def _who_holds_them() -> None:
    add(
        "attempts",
        seconds("began_at", optional=True),
        seconds("told_at", optional=True),
        number("run_no", before=0),
        text("stream", before=""),
        number("last_seq", before=0),
        number("logged", before=0),
    )
    add(
        "agents",
        text("capabilities", before=""),
        text("has", before=""),
        text("free", before=""),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        text("attempt_id", key=True),
        number("run_no", key=True),
        text("task_id"),
        text("agent_id"),
        text("machine_id"),
        seconds("started_at", optional=True),
        seconds("began_at", optional=True),
        seconds("ended_at"),
        seconds("told_at", optional=True),
        number("exit_code", optional=True),
        text("signal", optional=True),
        text("reason", optional=True),
        number("error_code"),
        text("error"),
        text("usage", optional=True),
        text("truncated", optional=True),
        data("stdout", optional=True),
        data("stderr", optional=True),
    )
    index("ix_runs_task_id", "runs", "task_id")


def _dependencies() -> None:
    op.create_table(
        "dependencies",
        text("task_id", key=True),
        text("depends_on", key=True),
    )
    index("dependencies_on", "dependencies", "depends_on", "task_id")


def _live_output() -> None:
    op.create_table(
        "streams",
        text("attempt_id", key=True),
        number("run_no", key=True),
        text("stream", key=True),
        text("task_id"),
        number("next_offset"),
        number("gone"),
        number("eof"),
    )
    index("ix_streams_task_id", "streams", "task_id")
    op.create_table(
        "pieces",
        text("attempt_id", key=True),
        number("run_no", key=True),
        text("stream", key=True),
        number("starts", key=True),
        number("ends"),
        data("data"),
    )


def _commands() -> None:
    op.create_table(
        "commands",
        text("id", key=True),
        text("agent_id"),
        text("action"),
        text("task_id"),
        text("attempt_id"),
        text("reason"),
        seconds("created_at"),
        seconds("told_at", optional=True),
    )
    index("commands_agent", "commands", "agent_id", "created_at")
    index("commands_task", "commands", "task_id")
