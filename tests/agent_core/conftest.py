"""A core for every test that wants one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent_core.core import Core


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    """Not started: `await core.start()` recovers and begins to give slots."""
    made = await Core.open(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def unarmed(tmp_path: Path) -> AsyncIterator[Core]:
    """Likewise, where what waits for a slot is pending: no start is stored ahead."""
    made = await Core.open(tmp_path, ahead=0)
    yield made
    await made.close()
