"""`demo`: server, agent and a small real workload, live on this machine."""

import click

from agent_core.cli.output import json_option


@click.command(
    epilog="""\b
    Examples:
      remotegpu demo            until Ctrl-C; shows what to try next
      remotegpu demo --once     ends by itself; 0 only if every result was right
    """
)
@click.option("--once", is_flag=True, help="End when the workload has ended.")
@json_option
def demo(once: bool, as_json: bool) -> None:
    """See it all work: a control plane, an agent, and some tasks with known results.

    Everything lives in a temporary directory and on loopback, with fresh tokens, and is gone
    afterwards.
    """
    from agent_core.cli.demo.play import play  # noqa: PLC0415  # `demo --help` needs none of it

    raise click.exceptions.Exit(play(once=once, as_json=as_json))
