"""Shorthand for the columns and indexes of the revisions: frozen in what it means."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Float, Integer, LargeBinary, Text
from sqlalchemy import text as sql


def text(
    name: str, *, key: bool = False, optional: bool = False, before: str | None = None
) -> Column[Any]:
    """`before`: what rows have that are older than the column."""
    return Column(name, Text, primary_key=key, nullable=optional, server_default=before)


def number(
    name: str, *, key: bool = False, optional: bool = False, before: int | None = None
) -> Column[Any]:
    default = None if before is None else str(before)
    return Column(
        name, BigInteger, primary_key=key, nullable=optional, server_default=default,
        autoincrement=False,
    )  # fmt: skip


def counted(name: str) -> Column[Any]:
    """A key that the database counts up."""
    kind = BigInteger().with_variant(Integer, "sqlite")
    return Column(name, kind, primary_key=True, autoincrement=True)


def seconds(name: str, *, optional: bool = False, before: float | None = None) -> Column[Any]:
    default = None if before is None else str(before)
    return Column(name, Float(53), nullable=optional, server_default=default)


def data(name: str, *, optional: bool = False) -> Column[Any]:
    return Column(name, LargeBinary, nullable=optional)


def index(name: str, table: str, *columns: str, where: str | None = None) -> None:
    """Make an index; `where` = of these rows only."""
    only = None if where is None else sql(where)
    op.create_index(name, table, list(columns), sqlite_where=only, postgresql_where=only)


def add(table: str, *columns: Column[Any]) -> None:
    for column in columns:
        op.add_column(table, column)
