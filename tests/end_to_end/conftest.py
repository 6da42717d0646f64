"""One site a test or a module, and the line of docs/trouble.md that a test proves."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.site import Site, site_in
from tests.end_to_end.trouble import Row, rows


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server on a free port; agents are started by the test."""
    with site_in(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For the tests of a module that leave server and agent as they were: each costs a second."""
    with site_in(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    """The line that names this test; a test that passes has shown it."""
    [found] = [each for each in rows() if each.proof == request.node.name]
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Not in the fixtures' ends: a test that skips has nothing to show, and a site may go on."""
    given = getattr(item, "funcargs", {})
    try:
        yield
    except Exception:
        for site in {id(each): each for each in given.values() if isinstance(each, Site)}.values():
            site.show()
        raise
    row = given.get("row")
    if isinstance(row, Row):
        assert row.shown, "this test did not show what its line of docs/trouble.md says"
