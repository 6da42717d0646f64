"""`config`: the settings that an agent would start with here, and where each comes from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent_core.cli.output import Column, json_option, print_json, print_table
from agent_core.cli.text import visible

if TYPE_CHECKING:
    from pydantic import BaseModel

    from agent_core.settings import Loaded

MASK: Final = "********"


@click.group(
    invoke_without_command=True,
    epilog="""\b
    Examples:
      remotegpu config
      REMOTEGPU_SITE=site_b remotegpu config --json
      remotegpu config check /etc/remotegpu-agent/settings.toml
    """,
)
@click.option(
    "--settings", "file", metavar="FILE", type=click.Path(path_type=Path),
    help="Read this settings file instead of looking for one.",
)  # fmt: skip
@json_option
@click.pass_context
def config(ctx: click.Context, file: Path | None, as_json: bool) -> None:
    """Show the agent's effective settings, each with its source; secrets are masked."""
    if ctx.invoked_subcommand:
        if file or as_json:
            raise click.UsageError(f"give the options behind `{ctx.invoked_subcommand}`")
        return
    rows = _effective(file)
    if as_json:
        print_json({"settings": rows})
        return
    columns = [Column(title="SETTING"), Column(title="VALUE", wide=True), Column(title="SOURCE")]
    print_table(
        columns,
        [(row["name"], visible(_short(row["value"])), visible(row["source"])) for row in rows],
    )


@config.command(
    epilog="""\b
    Example:
      remotegpu config check ./settings.toml
    """
)
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Say whether an agent would start with FILE, with the .secrets beside it and the environment.

    Ends with 0 if so, else with 2 and what to mend, or with 1 if a plugin cannot be loaded.
    """
    count = len(_effective(file))
    if as_json:
        print_json({"file": str(file), "ok": True, "settings": count})
    else:
        click.echo(f"{visible(str(file))}: all {count} settings are in order")


def _effective(file: Path | None) -> list[dict[str, Any]]:
    """Every setting of core and of the enabled plugins, validated. Raises what a start would."""
    from agent_core.plugins import discover  # noqa: PLC0415  # it loads pluggy, pydantic, dynaconf
    from agent_core.sections import CORE_SECTIONS, PluginsSection  # noqa: PLC0415
    from agent_core.settings import load  # noqa: PLC0415

    loaded = load(file)
    models = dict(CORE_SECTIONS)
    infos = discover(loaded.section("plugins", PluginsSection))
    models |= {info.name: info.settings for info in infos if info.settings}
    return [row for name, model in models.items() for row in _table(loaded, name, model)]


def _table(loaded: "Loaded", name: str, model: Any) -> list[dict[str, Any]]:
    from agent_core.settings import is_secret  # noqa: PLC0415

    section: BaseModel = loaded.section(name, model)
    rows = []
    for key, value in section.model_dump(mode="json").items():
        secret = is_secret(key) and value
        source = loaded.place(name, key)
        rows.append({"name": f"{name}.{key}", "value": MASK if secret else value, "source": source})
    return rows


def _short(value: Any) -> str:
    import json  # noqa: PLC0415

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
