"""`tasks` and `task`: look at tasks."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from agent_core.api import resources
from agent_core.api.wire import Json
from agent_core.cli.config import connect, user_name
from agent_core.cli.ids import id_argument
from agent_core.cli.output import Column, json_option, note, print_fields, print_json, print_table
from agent_core.cli.text import moment, span, took, words

if TYPE_CHECKING:
    from agent_core.api.client import Client

STATUSES = (
    "pending", "assigned", "running", "suspended", "preempted",
    "completed", "failed", "cancelled",
)  # fmt: skip
COMMAND_LIMIT = 1000  # characters of a command line that are shown; --json has them all
LISTED = 20  # ids that one line shows
ALL_LIMIT = 10_000  # rows that one `--all` shows

COLUMNS = (
    Column(title="ID"),
    Column(title="NAME", wide=True),
    Column(title="STATUS"),
    Column(title="PRI", right=True),
    Column(title="EXIT", right=True, spare=True),
    Column(title="CREATED", spare=True),
    Column(title="TOOK", right=True),
    Column(title="MACHINE", wide=True, spare=True),
    Column(title="WAITS FOR", wide=True),
    Column(title="NOTE", wide=True),
)
WAITS = [column.title for column in COLUMNS].index("WAITS FOR")


@click.command(
    epilog="""\b
    Examples:
      remotegpu tasks --status running --status pending
      remotegpu tasks --mine --name train- --limit 200
      remotegpu tasks --all --json | jq -r '.tasks[].id'
    """
)
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(STATUSES), metavar="STATUS",
    help=f"Only these: {', '.join(STATUSES)}. May be repeated.",
)  # fmt: skip
@click.option("--machine", default="", help="Only tasks of the machine with this id.")
@click.option("--name", default="", help="Only tasks whose name begins so.")
@click.option("--user", default="", help="Only tasks of this user.")
@click.option("--mine", is_flag=True, help="Only yours, as `submit` names you.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, ALL_LIMIT))
@click.option("--after", default="", metavar="CURSOR", help="Go on where a list ended.")
@click.option("--all", "everything", is_flag=True, help=f"All of them, up to {ALL_LIMIT}.")
@json_option
def tasks(*, limit: int, everything: bool, mine: bool, as_json: bool, **filters: Any) -> None:
    """List tasks, newest first.

    `remotegpu explain ID` says more of what a task waits for.
    """
    if mine:
        filters["user"] = _myself(filters["user"])
    with connect(as_json=as_json) as client:
        rows, cursor = _collect(client, ALL_LIMIT if everything else limit, filters)
    if as_json:
        print_json({"tasks": rows, "next_cursor": cursor})
        return
    _print(rows)
    if cursor is not None:
        note(f"there are more: add --after {cursor}")


def _myself(other: str) -> str:
    if other:
        raise click.UsageError("give --mine or --user, not both")
    if name := user_name(os.environ):
        return name
    raise click.UsageError("--mine: nobody knows your name; set user in config.toml, or use --user")


def _print(tasks: Sequence[Mapping[str, Json]]) -> None:
    """On a terminal the column of what they wait for is there only where any waits."""
    rows = [row(task) for task in tasks]
    if sys.stdout.isatty() and not any(line[WAITS] for line in rows):
        rows = [(*line[:WAITS], *line[WAITS + 1 :]) for line in rows]
        print_table((*COLUMNS[:WAITS], *COLUMNS[WAITS + 1 :]), rows)
    else:
        print_table(COLUMNS, rows)


def _collect(
    client: "Client", wanted: int, filters: Mapping[str, Any]
) -> tuple[list[dict[str, Json]], str | None]:
    """At most so many tasks, and where to go on if there are more."""
    rows: list[dict[str, Json]] = []
    cursor: str | None = filters["after"]
    while cursor is not None and len(rows) < wanted:
        page = client.tasks(**{**filters, "after": cursor}, limit=wanted - len(rows))
        if not page.tasks:
            return rows, None
        rows += page.tasks
        cursor = page.next_cursor
    return rows, cursor


def row(task: Mapping[str, Json]) -> tuple[str, ...]:
    """One line of the table."""
    return (
        words(task["id"]),
        words(task.get("name")),
        words(task["status"]),
        words(task.get("priority")),
        words(task.get("exit_code")),
        moment(task.get("created_at")),
        took(task.get("started_at"), task.get("ended_at")),
        words(task.get("machine_id")),
        words(task.get("waits_for")),
        remark(task),
    )


def remark(task: Mapping[str, Json]) -> str:
    """What else is to be said in one line: why it failed, or how far it is."""
    if task.get("status") in ("completed", "failed", "cancelled"):
        return words(task.get("error"))
    if task.get("cancel_requested_at"):
        return "being cancelled"
    if task.get("unreachable_since"):
        return f"machine: unreachable since {moment(task['unreachable_since'])}"
    if task.get("status") == "preempted":
        return "made way for more urgent work"
    if task.get("next_run_at"):
        return f"runs again at {moment(task['next_run_at'])}"
    if task.get("status") != "running":
        return ""
    percent = task.get("progress")
    done = "" if percent is None else f"{words(percent)}% "
    return done + words(task.get("progress_message"))


@click.command(epilog="\b\nExample:\n  remotegpu task 3f0c… --json | jq .exit_code\n")
@id_argument()
@json_option
def task(task_id: str, as_json: bool) -> None:
    """Show one task with its result and its runs."""
    with connect(as_json=as_json) as client:
        found = client.task(task_id)
    if as_json:
        print_json(found)
        return
    print_fields(_fields(found))
    runs = found.get("runs")
    if isinstance(runs, list) and runs:
        click.echo()
        print_table(
            [
                Column(title=title)
                for title in ("RUN", "STARTED", "TOOK", "EXIT", "SIGNAL", "REASON")
            ],
            [_run_row(run) for run in runs if isinstance(run, dict)],
        )


def _fields(task: Mapping[str, Json]) -> list[tuple[str, str]]:
    return [
        ("id", words(task["id"])),
        ("name", words(task.get("name"))),
        ("type", words(task.get("type"))),
        ("command", _command(task)),
        ("workdir", words(task.get("workdir"))),
        ("status", words(task["status"])),
        ("waits for", words(task.get("waits_for"))),
        ("note", "" if task.get("error") else remark(task)),
        ("cancel requested", moment(task.get("cancel_requested_at"))),
        ("cancel reason", words(task.get("cancel_reason"))),
        ("exit code", words(task.get("exit_code"))),
        ("signal", words(task.get("signal"))),
        ("reason", words(task.get("reason"))),
        ("error code", words(task.get("error_code") or None)),
        ("error", words(task.get("error"))),
        ("priority", words(task.get("priority"))),
        ("timeout", _seconds(task.get("timeout"))),
        ("retries", _retries(task)),
        ("user", words(task.get("user"))),
        ("machine", words(task.get("machine_id"))),
        ("labels", _labels(task.get("labels"))),
        ("resources", asked_for(task.get("resources"))),
        ("executor", words(task.get("executor"))),
        ("after", _listed(task.get("depends_on"))),
        ("parent", words(task.get("parent_id"))),
        ("created", moment(task.get("created_at"))),
        ("started", moment(task.get("started_at"))),
        ("ended", moment(task.get("ended_at"))),
        ("took", took(task.get("started_at"), task.get("ended_at"))),
        ("lease until", moment(task.get("lease_expires_at"))),
    ]  # fmt: skip


def _command(task: Mapping[str, Json]) -> str:
    """As a shell would want it written, if it is a program with arguments; else its text."""
    args = task.get("args")
    if isinstance(args, list) and (args or task.get("exec")):
        line = shlex.join(str(word) for word in (task.get("command"), *args))
    else:
        line = str(task.get("command") or "")
    return words(line if len(line) <= COMMAND_LIMIT else line[:COMMAND_LIMIT] + " …")


def _labels(value: Json) -> str:
    if not isinstance(value, dict):
        return words(value)
    return ", ".join(words(f"{name}={each}") for name, each in value.items())


def asked_for(value: Json) -> str:
    """Resources as people say them: `2 a100 GPUs of 20 GiB each, 4 cpus, 8 GiB of memory`."""
    try:
        wanted = resources.read(value or {})
    except ValueError:
        return words(value)
    said = []
    if wanted.gpus:
        kind = f"{wanted.gpu} GPU" if wanted.gpu else "GPU"
        of = f" of {resources.size_in_words(wanted.gpu_memory)}" if wanted.gpu_memory else ""
        each = " each" if of and wanted.gpus > 1 else ""
        said.append(f"{wanted.gpus} {kind}{'s' if wanted.gpus > 1 else ''}{of}{each}")
    if wanted.cpus:
        said.append(f"{wanted.cpus:g} cpus")
    if wanted.memory:
        said.append(f"{resources.size_in_words(wanted.memory)} of memory")
    return words(", ".join(said))


def _listed(value: Json) -> str:
    if not isinstance(value, list):
        return words(value)
    shown = [words(each) for each in value[:LISTED]]
    return ", ".join(shown) + (f" and {len(value) - LISTED} more" if len(value) > LISTED else "")


def _retries(task: Mapping[str, Json]) -> str:
    """An agent keeps count of its own retries: the control plane knows those that it made."""
    allowed, made = task.get("max_retries"), task.get("retry_count")
    if not allowed:
        return ""
    return f"{words(made)} of {words(allowed)}" if made else f"up to {words(allowed)}"


def _seconds(value: Json) -> str:
    return span(value) if isinstance(value, int | float) else words(value)


def _run_row(run: Mapping[str, Json]) -> tuple[str, ...]:
    return (
        words(run.get("run_no")),
        moment(run.get("started_at")),
        took(run.get("started_at"), run.get("ended_at")) if run.get("ended_at") else "",
        words(run.get("exit_code")),
        words(run.get("signal")),
        words(run.get("reason")),
    )
