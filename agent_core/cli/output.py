"""How commands speak: tables on a terminal, aligned text in a pipe, JSON where asked for."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from agent_core.api.wire import Json
from agent_core.cli.text import visible

F = TypeVar("F", bound=Callable[..., Any])

ROOMY = 120  # columns of a terminal that has room for spare ones
COLOURS: Mapping[str, str] = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "assigned": "cyan",
    "preempted": "magenta",
    "suspended": "magenta",
}


def json_option(command: F) -> F:
    """`--json`, which every command has."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help='Answer in JSON on standard output; an error is {"error": …} on standard error.',
    )(command)


def print_json(data: Json) -> None:
    """One document. ASCII only, so that nothing in it acts on a terminal."""
    click.echo(json.dumps(data, indent=2))


def print_json_line(data: Json, *, err: bool = False) -> None:
    click.echo(json.dumps(data), err=err)


def note(text: str, *, as_json: bool = False) -> None:
    """A remark beside the answer, on standard error."""
    if as_json:
        print_json_line({"note": text}, err=True)
    else:
        click.echo(f"remotegpu: {visible(text)}", err=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    wide: bool = False  # is cut where a terminal is narrow
    spare: bool = False  # is left out there; a pipe has all of it
    right: bool = False


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Rows of text that is already harmless (`visible`)."""
    if sys.stdout.isatty():
        _rich_table(columns, rows)
        return
    lines = [[column.title for column in columns], *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415  # 50 ms that only a terminal needs
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, markup=False, emoji=False)
    narrow = console.width < ROOMY
    shown = [at for at, column in enumerate(columns) if not (narrow and column.spare)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at in shown:
        column = columns[at]
        lengths = [len(column.title), *(len(row[at]) for row in rows)]
        table.add_column(
            column.title,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column.right else "left",
            min_width=None if column.wide else max(lengths),
        )
    for row in rows:
        table.add_row(*(Text(row[at], style=COLOURS.get(row[at], "")) for at in shown))
    console.print(table)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """`name: value` lines, aligned; what is empty is left out."""
    shown = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        click.echo(f"{name + ':':<{width}}  {value}")
