"""`policy`: what this machine's rules say of a command, without running it."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent_core.cli.exits import Exit
from agent_core.cli.output import json_option, print_fields, print_json
from agent_core.cli.text import visible

if TYPE_CHECKING:
    from agent_core.models import Launch, Verdict


@click.group(
    epilog="""\b
    Example:
      remotegpu policy check --json -- 'nvidia-smi -L'
    """
)
def policy() -> None:
    """What this machine's rules say of a command."""


@policy.command(
    epilog="""\b
    Examples:
      remotegpu policy check -- 'nvidia-smi -L'          a text, as submit -c takes it
      remotegpu policy check -- python3 train.py --fast  a command with its arguments
      remotegpu policy check --type script -- "$(cat job.sh)"
    """
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--type", "kind", type=click.Choice(["shell", "python", "script"]), default="shell",
    show_default=True, help="What a single TEXT is.",
)  # fmt: skip
@click.option(
    "--settings", "file", metavar="FILE", type=click.Path(path_type=Path),
    help="Read this settings file instead of looking for one.",
)  # fmt: skip
@json_option
def check(command: tuple[str, ...], kind: str, file: Path | None, as_json: bool) -> None:
    """Judge a command as the agent of this machine would; nothing is run.

    One COMMAND is the text of a task, several are a program and its arguments. Exit code 0: it may
    run; 4: it may not.
    """
    launch, verdict = _judged(command, kind, file)
    argv = list(verdict.argv or launch.argv)
    told: dict[str, Any] = {
        "allowed": verdict.allowed,
        "rule": verdict.rule,
        "reason": verdict.reason,
        "argv": argv,
        "program": verdict.program or None,
    }
    if as_json:
        print_json(told)
    else:
        fields = [("allowed", "yes" if verdict.allowed else "no")]
        fields += [(name, visible(str(told[name]))) for name in ("rule", "reason") if told[name]]
        fields.append(("runs" if verdict.allowed else "would run", visible(_quoted(argv))))
        if verdict.program:
            fields.append(("program", visible(verdict.program)))
        print_fields(fields)
    raise click.exceptions.Exit(Exit.OK if verdict.allowed else Exit.REFUSED)


def _judged(command: Sequence[str], kind: str, file: Path | None) -> "tuple[Launch, Verdict]":
    """As the agent's own plugins say, built from its settings and never started."""
    from agent_core import launch as launching  # noqa: PLC0415  # only now: it loads the plugins
    from agent_core.errors import NeverRan  # noqa: PLC0415
    from agent_core.models import Task  # noqa: PLC0415
    from agent_core.rules import validators  # noqa: PLC0415

    first, *rest = command
    task = Task(id="check", command=first, args=tuple(rest), exec=bool(rest), type=kind)
    with tempfile.TemporaryDirectory(prefix="remotegpu-") as folder:
        hooks = validators(file, Path(folder))
        try:
            launch = launching.build(task, Path(folder), start_id="check")
        except NeverRan as error:
            raise click.UsageError(f"this could never run: {error}") from None
        return launch, asyncio.run(hooks.validate(task, launch))


def _quoted(argv: Sequence[str]) -> str:
    """As a person would type it; what it really is stands in --json."""
    import shlex  # noqa: PLC0415

    return shlex.join(argv)
