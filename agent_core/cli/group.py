"""Which commands there are: a group that imports a command only when it is called.

Short helps stand here, because help and completion would else import every command for one line.
Commands of other packages come from the entry-point group `agent_core.commands`; a broken one
breaks nothing but itself.
"""

import importlib
import importlib.metadata
from typing import Final

import click
from click.shell_completion import CompletionItem

from agent_core.hookspecs import COMMANDS_GROUP

# name: (where it stands, its line in the list); in the order that `--help` shows
COMMANDS: Final = {
    "submit": ("agent_core.cli.submit:submit", "Submit a task: a command, shell text or a script."),
    "tasks": ("agent_core.cli.tasks:tasks", "List tasks, newest first."),
    "task": ("agent_core.cli.tasks:task", "Show one task with its result and its runs."),
    "explain": ("agent_core.cli.explain:explain", "Say why a task does not run."),
    "wait": ("agent_core.cli.wait:wait", "Wait for tasks, and exit with a task's own code."),
    "logs": ("agent_core.cli.logs:logs", "Print what a task wrote, or follow it live."),
    "cancel": ("agent_core.cli.cancel:cancel", "Cancel tasks, waiting or running."),
    "agent": ("agent_core.cli.agent:agent", "Run the agent on this machine."),
    "config": (
        "agent_core.cli.settings:config",
        "Show the agent's settings and where each comes from, or check a file.",
    ),
    "policy": ("agent_core.cli.policy:policy", "Say whether a command may run on this machine."),
    "plugins": (
        "agent_core.cli.plugins:plugins",
        "Show which plugins are enabled, and from where.",
    ),
    "demo": ("agent_core.cli.demo:demo", "See it all work: server, agent and a small workload."),
    "completion": ("agent_core.cli.completion:completion", "Print a shell's completion script."),
}
# Lines for commands that come with this project by the plugins' door.
KNOWN_HELP: Final = {"server": "Run the control plane."}


class LazyGroup(click.Group):
    """The `remotegpu` group."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *(name for name in sorted(_plugin_commands()) if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            return _import(COMMANDS[cmd_name][0])
        points = _plugin_commands().get(cmd_name)
        return None if points is None else _load(cmd_name, points)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:  # click looks at imported ones only
            names = self.list_commands(ctx)
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=names, ctx=ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _short_help(name)) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=_short_help(name)) for name in names]
        return items + click.Command.shell_complete(self, ctx, incomplete)


def _import(path: str) -> click.Command:
    module, _, name = path.partition(":")
    command = getattr(importlib.import_module(module), name)
    if not isinstance(command, click.Command):
        raise TypeError(f"{path} is no click command")
    return command


def _plugin_commands() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """Commands of other packages by name; two packages may claim the same one."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=COMMANDS_GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def _short_help(name: str) -> str:
    if name in COMMANDS:
        return COMMANDS[name][1]
    if name in KNOWN_HELP:
        return KNOWN_HELP[name]
    return f"(from {', '.join(_package(point) for point in _plugin_commands()[name])})"


def _package(point: importlib.metadata.EntryPoint) -> str:
    return "an unknown package" if point.dist is None else point.dist.name


def _load(name: str, points: list[importlib.metadata.EntryPoint]) -> click.Command:
    if len({point.value for point in points}) > 1:
        packages = ", ".join(sorted(_package(point) for point in points))
        raise click.ClickException(
            f"the command {name!r} comes from several packages ({packages}); uninstall all but one"
        )
    point = points[0]
    try:
        command = point.load()
    except Exception as error:
        raise click.ClickException(
            f"the command {name!r} of {_package(point)} cannot be loaded from {point.value}: "
            f"{type(error).__name__}: {error}; the other commands still work"
        ) from error
    if not isinstance(command, click.Command):
        raise click.ClickException(
            f"the command {name!r} of {_package(point)} ({point.value}) is no click command"
        )
    return command
