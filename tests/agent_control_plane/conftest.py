"""A control plane for a test: the real app on a real socket and database, its clock turned by hand.

Every test that asks for a `house` or a `place` runs on SQLite and, marked `engines`, on PostgreSQL.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.agent_control_plane.kit import BOTH, House, Place, open_house
from tests.postgres import Cluster


@pytest.fixture(params=BOTH)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty database."""
    if request.param == "sqlite":
        yield Place.file(tmp_path / "server.db")
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    with cluster.schema() as name:
        yield Place.schema(cluster, name)


@pytest.fixture
async def house(place: Place) -> AsyncIterator[House]:
    async with open_house(place) as opened:
        yield opened
