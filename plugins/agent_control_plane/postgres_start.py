"""Whether a PostgreSQL database can be ours: its driver, version, encoding, schema and tables."""

import importlib
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, inspect
from sqlalchemy.exc import DBAPIError

from agent_control_plane import schema
from agent_control_plane.tables import metadata
from agent_core import log
from agent_core.errors import SettingsError, StoreUnusable

OLDEST: Final = 130000  # of the server
_LOCK: Final = 0x72656D6F  # of those who make or change tables, beside the schema's name
_log = log.get("database")


def driver() -> Any:
    """psycopg. Raises SettingsError where it is not installed."""
    try:
        return importlib.import_module("psycopg")
    except ImportError:
        raise SettingsError(
            "server.database names a PostgreSQL database, and its driver is not installed; "
            "install it by pip install 'remotegpu[postgresql]'"
        ) from None


def with_driver(url: URL) -> URL:
    """The URL as SQLAlchemy knows it."""
    driver()
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise SettingsError(
            f"server.database: {url.drivername}: names a driver that is not used here; "
            "write postgresql://user:password@host/database"
        )
    return url.set(drivername="postgresql+psycopg")


def prepare(engine: Engine, name: str) -> str:
    """Make the tables or bring them up to date, one server after the other.

    Returns the channel of those who use the same tables. Raises SettingsError or StoreUnusable.
    """
    try:
        with engine.begin() as connection:
            _check(connection, name)
            ours = connection.exec_driver_sql("SELECT current_schema()").scalar()
            if ours is None:
                raise SettingsError(
                    f"server.database: {name} has no schema to keep tables in; "
                    "make the one that its search_path names"
                )
            # Whoever waits here may wait for an upgrade of large tables.
            for setting in ("lock_timeout", "statement_timeout"):
                connection.exec_driver_sql(f"SET LOCAL {setting} = 0")
            connection.exec_driver_sql(
                "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK, ours)
            )
            _bring_up_to_date(connection, name)
    except DBAPIError as error:
        raise _unusable(name, error) from None
    return f"remotegpu_{ours}"[:63]


def _check(connection: Connection, name: str) -> None:
    number = int(connection.exec_driver_sql("SHOW server_version_num").scalar() or 0)
    if number < OLDEST:
        raise SettingsError(
            f"server.database: {name} is PostgreSQL {number // 10000}; "
            f"{OLDEST // 10000} or newer is needed"
        )
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise SettingsError(
            f"server.database: {name} is encoded in {encoding}; make one by "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    if connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on":
        raise SettingsError(
            f"server.database: {name} is read-only, as a standby is; name the primary server"
        )


def _bring_up_to_date(connection: Connection, name: str) -> None:
    found = schema.version(connection)
    if found is None:
        others = set(inspect(connection).get_table_names()) & set(metadata.tables)
        if others:
            raise StoreUnusable(
                f"{name} holds tables of another program ({', '.join(sorted(others))}); "
                "name another database, or another schema by ?options=-csearch_path=NAME"
            )
        schema.create(connection)
    elif schema.newer(found):
        raise StoreUnusable(
            f"{name} was written by a newer version of remotegpu (tables {found}, this program "
            f"knows {schema.HEAD}); start that version, or restore an older backup"
        )
    elif found != schema.HEAD:
        _log.warning("bringing the tables up to date", database=name, tables=found)
        schema.upgrade(connection)


def _unusable(name: str, error: DBAPIError) -> SettingsError | StoreUnusable:
    words = " ".join(str(error.orig).split())
    state = getattr(error.orig, "sqlstate", None)
    if state == "42501":
        return SettingsError(
            f"server.database: {name} does not let its user make tables ({words}); "
            "GRANT CREATE on its schema, or make the user its owner"
        )
    if state is None or state[:2] in {"08", "28", "3D"}:
        return SettingsError(
            f"server.database: {name} cannot be reached ({words}); "
            "start it, or correct host, port, user, password or database"
        )
    return StoreUnusable(f"{name} cannot be used ({words}); correct that and start again")
