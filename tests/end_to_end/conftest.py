"""One site a test, and the line of docs/trouble.md that a test proves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.site import Site, site_in
from tests.end_to_end.trouble import Row, rows


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server on a free port; agents are started by the test."""
    with site_in(tmp_path) as made:
        yield made


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The line that names this test; the test must show it."""
    [found] = [each for each in rows() if each.proof == request.node.name]
    yield found
    assert found.shown, "this test did not show what its line of docs/trouble.md says"
