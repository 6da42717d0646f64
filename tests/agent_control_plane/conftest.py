"""A control plane for a test: the real app on a real socket and file, its clock turned by hand."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent_control_plane.kit import House, open_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path / "server.db") as opened:
        yield opened
