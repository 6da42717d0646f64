"""`explain`: why a task does not run, machine by machine; and the hint that `submit` gives."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import click

from agent_core.api.wire import Json
from agent_core.cli.config import connect
from agent_core.cli.ids import id_argument
from agent_core.cli.output import Column, json_option, note, print_json, print_table
from agent_core.cli.text import visible, words
from agent_core.errors import RemoteGPUError

if TYPE_CHECKING:
    from agent_core.api.client import Client

COLUMNS: Final = (
    Column(title="MACHINE"),
    Column(title="REASON"),
    Column(title="WHY", wide=True),
)
# Fields that may ask for what no machine has, and the reasons that say so.
DEMANDING: Final = ("machine_id", "labels", "executor", "resources")
HOPELESS: Final = frozenset(
    {"unknown_machine", "label", "executor", "no_such_gpu", "too_few_gpus", "too_few_cpus",
     "too_little_memory"}
)  # fmt: skip
HINTS: Final = 3  # machines that a hint names


@click.command(epilog="\b\nExample:\n  remotegpu explain $ID\n")
@id_argument(("pending", "assigned", "running", "suspended", "preempted"))
@json_option
def explain(task_id: str, as_json: bool) -> None:
    """Say why a task does not run: what it waits for, and what each machine lacks.

    The most hopeful machine comes first. The reasons' codes stand in docs/explain.md.
    """
    with connect(as_json=as_json) as client:
        reasons = client.explain(task_id)
    if as_json:
        told: list[Json] = [
            {"machine_id": each.machine_id, "code": each.code, "text": each.text}
            for each in reasons
        ]
        print_json({"reasons": told})
        return
    rows = [(visible(each.machine_id) or "-", visible(each.code), visible(each.text))
            for each in reasons]  # fmt: skip
    print_table(COLUMNS, rows)


def hint(client: "Client", fields: Mapping[str, Json], task_id: str, *, as_json: bool) -> None:
    """Where a task asks for what no machine has: say so now, it would wait without a word."""
    if not any(name in fields for name in DEMANDING):
        return
    try:
        reasons = client.explain(task_id)
    except RemoteGPUError:  # it is submitted, whatever becomes of this question
        return
    if not reasons or not all(each.code in HOPELESS for each in reasons):
        return
    why = "; ".join(
        f"{each.machine_id}: {each.text}".removeprefix(": ") for each in reasons[:HINTS]
    )
    more = f"; and {len(reasons) - HINTS} more" if len(reasons) > HINTS else ""
    note(f"no machine can run it as it is: {words(why)}{more}; "
         f"see: remotegpu explain {words(task_id)}", as_json=as_json)  # fmt: skip
