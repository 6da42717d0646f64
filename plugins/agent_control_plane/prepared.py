"""Statements as the driver takes them, compiled once: those that are asked at every request.

What SQLAlchemy does around each call is half of what a quick statement costs. SQLite's driver is
asked directly; on PostgreSQL it stays, since it sorts the driver's errors by what can be done.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Dialect, Select, Table, UpdateBase, bindparam, insert, update
from sqlalchemy.exc import DBAPIError

from agent_control_plane.db import several_write

Row = Sequence[Any]


class _Text(NamedTuple):
    """One statement in the words of one database."""

    words: str
    names: tuple[str, ...]  # of the values in their order; none = the driver takes them by name
    fixed: Mapping[str, Any]  # values that stand in the statement itself


def _compiled(statement: UpdateBase | Select[Any], dialect: Dialect) -> _Text:
    compiled: Any = statement.compile(dialect=dialect)
    fixed = {name: value for name, value in compiled.params.items() if value is not None}
    return _Text(str(compiled), tuple(getattr(compiled, "positiontup", None) or ()), fixed)


class Query:
    """A SELECT whose every value is a number or a text; its rows are told as the driver has them.

    Where it names as many values as somebody gives, there is one for each number: see `several`.
    """

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._texts: dict[str, _Text] = {}  # by the name of the database's kind

    def rows(self, connection: Connection, given: Mapping[str, Any]) -> Sequence[Row]:
        text = self._texts.get(connection.dialect.name)
        if text is None:
            text = _compiled(self._statement, connection.dialect)
            self._texts[connection.dialect.name] = text
        values = {**text.fixed, **given}
        if several_write(connection):
            return connection.exec_driver_sql(text.words, values).all()
        given_values = [values[name] for name in text.names]
        try:
            found: list[Row] = _driver(connection).execute(text.words, given_values).fetchall()
        except sqlite3.Error as error:
            raise _wrapped(text.words, error) from error
        return found

    def first(self, connection: Connection, given: Mapping[str, Any]) -> Row | None:
        found = self.rows(connection, given)
        return found[0] if found else None


def several(count: int) -> tuple[str, ...]:
    """Names for so many values."""
    return tuple(f"_{number}" for number in range(count))


# Each move has its own few columns: as many statements as moves, each compiled once.
@lru_cache(maxsize=512)
def updating(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> "Many":
    """UPDATE of these columns, by the table's id as the last value of each row."""
    values: dict[str, Any] = {name: bindparam(name) for name in columns}
    statement = update(table).where(table.c.id == bindparam("_id")).values(values)
    return Many(statement, dialect, (*columns, "_id"))


@lru_cache(maxsize=64)
def inserting(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> "Many":
    """INSERT of rows that have these columns."""
    statement = insert(table).values({name: bindparam(name) for name in columns}).inline()
    return Many(statement, dialect, columns)


class Many:
    """A change of many rows; each gives its values in the order of `names`."""

    def __init__(self, statement: UpdateBase, dialect: Dialect, names: tuple[str, ...]) -> None:
        text = _compiled(statement, dialect)
        self._words = text.words
        self._names: Final = names
        self._pick: Callable[[Row], Any] | None = None
        if text.names and text.names != names:
            self._pick = itemgetter(*map(names.index, text.names))

    def run(self, connection: Connection, rows: Sequence[Row]) -> None:
        if several_write(connection):
            by_name = [dict(zip(self._names, row, strict=True)) for row in rows]
            connection.exec_driver_sql(self._words, by_name)
        else:
            given = rows if self._pick is None else [self._pick(row) for row in rows]
            try:
                _driver(connection).executemany(self._words, given)
            except sqlite3.Error as error:
                raise _wrapped(self._words, error) from error


def _wrapped(words: str, error: sqlite3.Error) -> DBAPIError:
    """As SQLAlchemy would raise it."""
    wrapped = DBAPIError.instance(words, None, error, sqlite3.Error)
    assert isinstance(wrapped, DBAPIError)
    return wrapped


def _driver(connection: Connection) -> Any:
    return connection.connection.dbapi_connection
