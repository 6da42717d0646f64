"""`cancel`: stop tasks, waiting or running."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from agent_core.api.wire import Json
from agent_core.cli.config import connect
from agent_core.cli.exits import CommandFailed, Exit, exit_code
from agent_core.cli.ids import ids_argument
from agent_core.cli.many import in_order
from agent_core.cli.output import json_option, note, print_json
from agent_core.cli.text import words
from agent_core.errors import Refused

if TYPE_CHECKING:
    from agent_core.api.client import Client


@click.command(
    epilog="""\b
    Examples:
      remotegpu cancel 3f0c… --reason 'wrong data set'
      remotegpu tasks --mine --status pending --json | jq -r '.tasks[].id' | xargs remotegpu cancel
    """
)
@ids_argument(("pending", "assigned", "running", "suspended", "preempted"))
@click.option("--reason", default="", help="Why; stands in the tasks' record.")
@json_option
def cancel(task_ids: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Cancel tasks: at once what waits, by its machine (TERM, then KILL) what runs.

    Of several, those that cannot be cancelled are told, and the others are.
    """
    task_ids = tuple(dict.fromkeys(task_ids))
    with connect(as_json=as_json) as client:
        if len(task_ids) == 1:
            stopped = client.cancel(task_ids[0], reason=reason)
            print_json(stopped) if as_json else click.echo(_told(stopped))
        else:
            _cancel_all(client, task_ids, reason, as_json)


def _told(stopped: Mapping[str, Json]) -> str:
    if stopped["status"] == "cancelled":
        return f"{words(stopped['id'])} cancelled"
    return f"{words(stopped['id'])} will be cancelled by the machine that holds it"


def _cancel_all(client: "Client", task_ids: tuple[str, ...], reason: str, as_json: bool) -> None:
    def stop(task_id: str) -> Mapping[str, Json] | Refused:
        try:
            return client.cancel(task_id, reason=reason)
        except Refused as error:
            return error

    done: list[Json] = []
    codes: set[int] = set()
    for task_id, answer in zip(task_ids, in_order(task_ids, stop), strict=True):
        if isinstance(answer, Refused):
            codes.add(exit_code(answer))
            note(f"{words(task_id)}: {answer}", as_json=as_json)
            continue
        done.append(answer)
        if not as_json:
            click.echo(_told(answer))
    if as_json:
        print_json({"tasks": done})
    if codes:
        raise CommandFailed(
            f"{len(task_ids) - len(done)} of {len(task_ids)} tasks could not be cancelled",
            codes.pop() if len(codes) == 1 else Exit.FAILED,
        )
