"""The version of the tables: made new, recognised, and brought up to date by Alembic."""

from pathlib import Path
from typing import Final

from sqlalchemy import Column, Connection, MetaData, Table, Text, insert, inspect, select

from agent_control_plane.tables import metadata

HEAD: Final = "0002"  # the newest revision in migrations/versions
# A name of our own: other programs that use Alembic may share a PostgreSQL schema with us.
VERSION_TABLE: Final = "remotegpu_schema"
_versions = Table(VERSION_TABLE, MetaData(), Column("version_num", Text, primary_key=True))


def version(connection: Connection) -> str | None:
    """The revision of the tables there; None where there is none of ours."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.execute(select(_versions.c.version_num)).scalar()
    return found


def newer(found: str) -> bool:
    """Whether a newer program made the tables. Revisions are numbers, written alike."""
    return found > HEAD


def create(connection: Connection) -> None:
    """The newest tables in an empty database, without importing Alembic."""
    metadata.create_all(connection)
    stamp(connection, HEAD)


def stamp(connection: Connection, revision: str) -> None:
    """Say which revision the tables have that are there."""
    _versions.create(connection)
    connection.execute(insert(_versions), {"version_num": revision})


def upgrade(connection: Connection, revision: str = HEAD) -> None:
    """Bring the tables to a revision, within the transaction that the connection is in."""
    from alembic import command  # noqa: PLC0415  # 0.1 s, for what is rarely needed
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
