"""One site a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.site import Site, site_in


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server on a free port; agents are started by the test."""
    with site_in(tmp_path) as made:
        yield made
