"""How commands speak: tables on a terminal, aligned text in a pipe, JSON where asked for."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from agent_core.api.wire import Json
from agent_core.cli.text import visible

F = TypeVar("F", bound=Callable[..., Any])

ROOMY = 120  # columns of a terminal that has room for spare ones
GAP = 2  # blanks between columns
NARROWEST = 6  # of a column that gives way
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
    """A remark beside the answer, on standard error, if anybody reads that."""
    with suppress(OSError):
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
    lines = [_titles(columns), *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len  # noqa: PLC0415  # 50 ms that only a terminal needs
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    room = terminal_width()
    shown = [at for at, column in enumerate(columns) if room >= ROOMY or not column.spare]
    widths = _fit(
        [max(cell_len(line[at]) for line in (_titles(columns), *rows)) for at in shown],
        [columns[at].wide for at in shown],
        room,
    )
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for at, width in zip(shown, widths, strict=True):
        table.add_column(
            columns[at].title,
            no_wrap=True,
            overflow="ellipsis",
            width=width,
            justify="right" if columns[at].right else "left",
        )
    for row in rows:
        table.add_row(*(Text(row[at], style=COLOURS.get(row[at], "")) for at in shown))
    needed = sum(widths) + GAP * len(widths)
    # Rich would leave out columns where they do not fit, a terminal breaks the line; and where
    # TERM is dumb, it heeds a width only together with a height.
    console = Console(
        highlight=False, markup=False, emoji=False, width=max(room, needed), height=len(rows) + 2
    )
    console.print(table)


def _titles(columns: Sequence[Column]) -> list[str]:
    return [column.title for column in columns]


def terminal_width() -> int:
    return shutil.get_terminal_size().columns


def _fit(widths: Sequence[int], wide: Sequence[bool], room: int) -> list[int]:
    """Column widths that fit, taken from the widest of the `wide` columns first."""
    fitting = list(widths)
    while sum(fitting) + GAP * len(fitting) > room:
        at = max(range(len(fitting)), key=lambda n: fitting[n] if wide[n] else 0)
        if not wide[at] or fitting[at] <= NARROWEST:
            break
        fitting[at] -= 1
    return fitting


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """`name: value` lines, aligned; what is empty is left out."""
    shown = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        click.echo(f"{name + ':':<{width}}  {value}")
