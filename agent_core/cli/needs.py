"""What a task needs beside its command: machine, resources, order; options of `submit`."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from agent_core.api import resources
from agent_core.api.wire import Json

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """Bytes, such as 20GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return resources.size(
                int(value) if str(value).isascii() and str(value).isdigit() else value
            )
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def pairs(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE`, repeated."""
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE")
        found[name] = value
    return found


def _ids(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> list[str]:
    """Each once, in the order given; a list may stand between commas or blanks."""
    found = [one for text in given for one in text.replace(",", " ").split()]
    if given and not found:
        raise click.BadParameter("no task is named")
    return list(dict.fromkeys(found))


_OPTIONS: Final = (
    click.option("--machine", help="Only the machine with this id runs it."),
    click.option(
        "--label", "labels", metavar="NAME=VALUE", multiple=True, callback=pairs,
        help="Only a machine with this label runs it. May be repeated.",
    ),
    click.option("--executor", help="The executor that must run it; default: the machine's first."),
    click.option("--gpus", type=click.IntRange(0, resources.MOST_GPUS), help="GPUs of its own."),
    click.option("--gpu", metavar="KIND", help="Part of their model's name, such as a100."),
    click.option("--gpu-memory", type=Size(), help="That each must have, such as 20GiB."),
    click.option(
        "--cpus", type=click.FloatRange(0, resources.MOST_CPUS), help="Processors it counts for."
    ),
    click.option("--memory", type=Size(), help="Memory it counts for, such as 8GiB."),
    click.option(
        "--after", "depends_on", metavar="ID", multiple=True, callback=_ids,
        help="Not before this task has completed. May be repeated, or be a list with commas.",
    ),
)  # fmt: skip


def needs_options(command: F) -> F:
    """All of them, in that order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def needs(given: Mapping[str, Any]) -> dict[str, Json]:
    """The fields of a task that say what it needs. Raises UsageError."""
    asked = {name: given[name] for name in ("gpus", "gpu", "gpu_memory", "cpus", "memory")}
    if asked["gpus"] == 0 and (asked["gpu"] or asked["gpu_memory"]):
        raise click.UsageError("--gpus 0, and a kind of GPU is named; ask for 1 or more")
    try:
        wanted = resources.read({name: value for name, value in asked.items() if value})
    except ValueError as error:
        option = str(error).replace("resources.", "--", 1).replace("gpu_memory", "gpu-memory")
        raise click.UsageError(option) from None
    found = {
        "machine_id": given["machine"],
        "labels": given["labels"],
        "executor": given["executor"],
        "resources": resources.as_json(wanted),
        "depends_on": given["depends_on"],
    }
    return {name: value for name, value in found.items() if value}
