"""How the demo is shown: a live table on a terminal, a line a change elsewhere, or JSON lines."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

import click

from agent_core.api.wire import Json
from agent_core.cli.output import COLOURS, print_json_line
from agent_core.cli.tasks import remark
from agent_core.cli.text import took, words

if TYPE_CHECKING:
    from rich.table import Table

Task = Mapping[str, Json]
_WIDTH = 20  # of a task's name


class Board(Protocol):
    """What the player tells."""

    def live(self) -> AbstractContextManager[object]:
        """Around the time in which tasks change."""

    def say(self, text: str) -> None: ...

    def show(self, tasks: Sequence[Task]) -> None:
        """How all tasks stand now."""


def board(*, as_json: bool) -> Board:
    """The one that fits where we are."""
    if as_json:
        return Lines(as_json=True)
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "", "unknown"):
        return LiveTable()
    return Lines(as_json=False)


def result(task: Task) -> str:
    """What a task came to, in one line."""
    if task.get("status") == "completed":
        lines = str(task.get("stdout") or "").strip().splitlines()
        more = f" (+{len(lines) - 1} lines)" if len(lines) > 1 else ""
        return words(" ".join(lines[0].split())) + more if lines else ""
    return remark(task) or (
        f"waits for {words(task['waits_for'])}" if task.get("waits_for") else ""
    )


class Lines:
    """One line for each change."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown: dict[str, tuple[str, str]] = {}

    def live(self) -> AbstractContextManager[object]:
        return nullcontext()

    def say(self, text: str) -> None:
        print_json_line({"say": text}) if self._as_json else click.echo(text)
        sys.stdout.flush()

    def show(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            now = (words(task["status"]), result(task))
            if self._shown.get(task["id"]) == now:
                continue
            self._shown[task["id"]] = now
            if self._as_json:
                names = ("id", "name", "priority", "status", "progress", "exit_code")
                told = {name: task.get(name) for name in names}
                print_json_line({"task": told, "result": now[1]})
            else:
                click.echo(f"{words(task.get('name')):<{_WIDTH}} {now[0]:<10} {now[1]}".rstrip())
        sys.stdout.flush()


class LiveTable:
    """One table, drawn anew."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  # only a terminal needs it
        from rich.live import Live  # noqa: PLC0415

        self._console = Console(highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="visible")

    def live(self) -> AbstractContextManager[object]:
        return self._live

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def show(self, tasks: Sequence[Task]) -> None:
        self._live.update(self._table(tasks), refresh=True)

    def _table(self, tasks: Sequence[Task]) -> "Table":
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("TASK", "PRI", "STATUS", "TOOK", "RESULT"):
            right = title in ("PRI", "TOOK")
            table.add_column(
                title, no_wrap=True, overflow="ellipsis", justify="right" if right else "left"
            )
        for task in tasks:
            status = words(task["status"])
            cells = (
                words(task.get("name")),
                words(task.get("priority")),
                status,
                took(task.get("started_at"), task.get("ended_at")),
                result(task),
            )
            table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in cells))
        return table
