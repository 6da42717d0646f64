"""The ID argument of the client commands: a whole id, which the shell completes."""

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from agent_core.cli.config import connect
from agent_core.cli.text import words
from agent_core.errors import RemoteGPUError

F = TypeVar("F", bound=Callable[..., Any])
TIMEOUT = 2.0  # seconds: somebody waits at the keyboard
OFFERED = 100  # the newest


def id_argument(statuses: Sequence[str] = ()) -> Callable[[F], F]:
    """`ID`, completed from the tasks in these states (none named: all)."""
    return click.argument("task_id", metavar="ID", shell_complete=_completion(statuses))


def ids_argument(statuses: Sequence[str] = ()) -> Callable[[F], F]:
    """`ID...`, at least one."""
    return click.argument(
        "task_ids",
        metavar="ID...",
        nargs=-1,
        required=True,
        shell_complete=_completion(statuses),
    )


def _completion(
    statuses: Sequence[str],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def offer(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
        # Words on standard error would stand in the middle of the line that is being typed.
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                with connect(timeout=TIMEOUT) as client:
                    tasks = client.tasks(statuses=statuses, limit=OFFERED).tasks
            except RemoteGPUError:
                return []
        return [
            CompletionItem(words(task["id"]), help=words(f"{task['status']} {task.get('name')}"))
            for task in tasks
            if task["id"].startswith(begun)
        ]

    return offer
