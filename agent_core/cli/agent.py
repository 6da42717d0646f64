"""`agent`: the agent in the foreground."""

import asyncio
import os
from pathlib import Path

import click

from agent_core.cli.output import json_option


@click.command(
    epilog="""\b
    Example:
      REMOTEGPU_SERVER_CLIENT__URL=https://gpu.example.org \\
      REMOTEGPU_SERVER_CLIENT__TOKEN=… remotegpu agent
    """
)
@click.option(
    "--settings", "file", metavar="FILE", type=click.Path(path_type=Path),
    help="Read this settings file instead of looking for one.",
)  # fmt: skip
@json_option
def agent(file: Path | None, as_json: bool) -> None:
    """Run the agent on this machine until it is stopped.

    The first SIGTERM or Ctrl-C stops it gently, a second one at once; running tasks go on in both
    cases, and the next agent takes them over. With --json it logs in JSON.
    """
    from agent_core import log  # noqa: PLC0415  # `agent --help` needs none of it
    from agent_core.agent import Agent  # noqa: PLC0415
    from agent_core.sections import LogSection  # noqa: PLC0415
    from agent_core.settings import load  # noqa: PLC0415

    environ = dict(os.environ)
    if as_json:
        environ["REMOTEGPU_LOG__FORMAT"] = "json"
    loaded = load(file, environ)
    log.configure(loaded.section("log", LogSection), secrets=loaded.secrets())
    for warning in loaded.warnings:
        log.get("settings").warning(warning)
    raise click.exceptions.Exit(asyncio.run(Agent(loaded).run()))
