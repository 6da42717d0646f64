"""The tables that a new database gets are those that an old one is brought to."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, inspect

from agent_control_plane import schema
from tests.agent_control_plane.kit import BOTH
from tests.postgres import Cluster


@pytest.fixture(params=BOTH)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Makes an empty database."""
    with contextlib.ExitStack() as stack:
        made: list[Engine] = []

        def make() -> Engine:
            url = f"sqlite:///{tmp_path}/{len(made)}.db"
            if request.param != "sqlite":
                cluster: Cluster = request.getfixturevalue("postgres")
                url = cluster.url(stack.enter_context(cluster.schema()))
                url = url.replace("postgresql:", "postgresql+psycopg:")
            made.append(create_engine(url))
            stack.callback(made[-1].dispose)
            return made[-1]

        yield make


def migrated(connection: Connection) -> None:
    schema.upgrade(connection)


def shape(engine: Engine, make: Callable[[Connection], None]) -> dict[str, Any]:
    """Every table, column and index that `make` makes in an empty database."""
    with engine.begin() as connection:
        make(connection)
        found = inspect(connection)
        return {
            name: {
                "columns": {
                    column["name"]: (
                        repr(column["type"]), column["nullable"], column["default"],
                        bool(column.get("autoincrement")),
                    )
                    for column in found.get_columns(name)
                },
                "key": found.get_pk_constraint(name)["constrained_columns"],
                "unique": sorted(
                    constraint["column_names"] for constraint in found.get_unique_constraints(name)
                ),
                "indexes": {
                    index["name"]: (
                        index["column_names"], bool(index["unique"]),
                        {key: str(value) for key, value in index["dialect_options"].items()},
                    )
                    for index in found.get_indexes(name)
                },
            }
            for name in found.get_table_names()
            if name != schema.VERSION_TABLE
        }  # fmt: skip


def test_a_database_brought_up_to_date_has_the_tables_of_a_new_one(
    empty: Callable[[], Engine],
) -> None:
    new, old = shape(empty(), schema.create), shape(empty(), migrated)
    assert sorted(old) == sorted(new), "a table is missing in the newest revision, or in tables.py"
    for name in new:
        assert old[name] == new[name], f"{name}: the newest revision and tables.py differ"


def test_the_newest_revision_is_the_one_that_the_server_asks_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [schema.HEAD]
    numbers = [revision.revision for revision in script.walk_revisions()]
    assert numbers == [f"{number:04}" for number in range(len(numbers), 0, -1)]
