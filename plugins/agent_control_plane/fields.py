"""Kinds of columns and indexes that the tables are made of."""

from typing import Any

from sqlalchemy import BigInteger, Column, Float, Index, Text
from sqlalchemy import text as words
from sqlmodel import Field


def text(*, key: bool = False, optional: bool = False) -> Any:
    return Field(
        sa_column=Column(Text, primary_key=key, nullable=optional), default=None if optional else ""
    )


def number(*, optional: bool = False) -> Any:
    return Field(sa_column=Column(BigInteger, nullable=optional), default=None if optional else 0)


def counter() -> Any:
    """A number that begins at 0, also in rows that are older than the column."""
    return Field(sa_column=Column(BigInteger, nullable=False, server_default="0"), default=0)


def said(first: str = "") -> Any:
    """Text that begins so, also in rows that are older than the column."""
    return Field(sa_column=Column(Text, nullable=False, server_default=first), default=first)


def seconds(*, optional: bool = True) -> Any:
    """Seconds, or a moment as seconds since the epoch."""
    return Field(sa_column=Column(Float(53), nullable=optional), default=None if optional else 0.0)


def partial(name: str, first: str, *more: str) -> Index:
    """An index of the rows where `first` is set: final tasks cost it nothing."""
    where = words(f"{first} IS NOT NULL")
    return Index(name, first, *more, sqlite_where=where, postgresql_where=where)
