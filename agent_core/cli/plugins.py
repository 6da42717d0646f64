"""`plugins`: which are enabled, from which package, in which order they are asked."""

from pathlib import Path

import click

from agent_core.cli.output import Column, json_option, print_json, print_table
from agent_core.cli.text import visible


@click.command(
    epilog="""\b
    Example:
      remotegpu plugins --settings /etc/remotegpu-agent/settings.toml
    """
)
@click.option(
    "--settings", "file", metavar="FILE", type=click.Path(path_type=Path),
    help="Read this settings file instead of looking for one.",
)  # fmt: skip
@json_option
def plugins(file: Path | None, as_json: bool) -> None:
    """Show which plugins the agent of this machine would run, in the order they are asked."""
    from agent_core.plugins import discover  # noqa: PLC0415  # it loads pluggy, pydantic, dynaconf
    from agent_core.sections import PluginsSection  # noqa: PLC0415
    from agent_core.settings import load  # noqa: PLC0415

    infos = discover(load(file).section("plugins", PluginsSection))
    if as_json:
        told = [
            {
                "order": order,
                "name": info.name,
                "package": info.distribution,
                "version": info.version,
                "hooks": list(info.hooks),
            }
            for order, info in enumerate(infos, 1)
        ]
        print_json({"plugins": told})
        return
    columns = [
        Column(title="ORDER", right=True),
        *(Column(title=title) for title in ("PLUGIN", "PACKAGE", "VERSION")),
        Column(title="HOOKS", wide=True),
    ]
    rows = [
        (str(order), info.name, visible(info.distribution), visible(info.version),
         " ".join(info.hooks))
        for order, info in enumerate(infos, 1)
    ]  # fmt: skip
    print_table(columns, rows)
