"""`completion`: the script that teaches a shell our words."""

import click
from click.shell_completion import get_completion_class

from agent_core.cli.output import json_option, print_json


@click.command(
    epilog="""\b
    Put one of these into your shell's start file:
      eval "$(remotegpu completion bash)"          ~/.bashrc
      eval "$(remotegpu completion zsh)"           ~/.zshrc
      remotegpu completion fish | source           ~/.config/fish/config.fish
    """
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def completion(ctx: click.Context, shell: str, as_json: bool) -> None:
    """Print a shell's completion script."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"there is no completion for {shell}")
    root = ctx.find_root()
    program = root.info_name or "remotegpu"
    script = kind(root.command, {}, program, f"_{program.upper()}_COMPLETE").source()
    print_json({"shell": shell, "script": script}) if as_json else click.echo(script)
