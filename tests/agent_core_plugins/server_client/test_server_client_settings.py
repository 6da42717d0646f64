"""Which settings a server client takes, and what it says to the others."""

import pytest
from pydantic import ValidationError

from agent_core_plugins.server_client import ServerClientSettings


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        (" https://gpu.example.com/ ", "https://gpu.example.com"),
        ("https://example.com/gpu/", "https://example.com/gpu"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("HTTPS://gpu.example.com", "https://gpu.example.com"),
    ],
)
def test_an_address_is_kept_without_its_last_slash(given: str, kept: str) -> None:
    assert ServerClientSettings(url=given).url == kept


@pytest.mark.parametrize(
    "url",
    [
        "gpu.example.com",
        "gpu.example.com:8080",
        "ftp://gpu.example.com",
        "http://",
        "http://:8080",
        "http://host:port",
        "http://host:0",
        "http://host:99999",
        "http://[::1",
        "http://ho st",
        "http://host/a b",
        "http://höst",
    ],
)
def test_what_is_no_address_is_told_what_one_is(url: str) -> None:
    with pytest.raises(ValidationError, match=r"such as https://gpu\.example\.com:8080"):
        ServerClientSettings(url=url)


@pytest.mark.parametrize("url", ["http://u:p@host", "http://u@host", "http://h?x=1", "http://h#x"])
def test_an_address_with_more_than_an_address_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValidationError, match="without user, password") as raised:
        ServerClientSettings(url=url)
    assert url not in str(raised.value)


@pytest.mark.parametrize("token", ["two words", "line\n", "tökén", "\x7f"])
def test_a_token_that_no_header_can_carry_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ValidationError, match="printable ASCII") as raised:
        ServerClientSettings(token=token)
    assert token not in str(raised.value)


def test_a_token_is_never_shown() -> None:
    assert "s3cret" not in repr(ServerClientSettings(token="s3cret"))


@pytest.mark.parametrize(
    "given",
    [
        {"timeout": 0},
        {"poll_interval": 0},
        {"poll_interval": "2 days"},
        {"renew_interval": -1},
        {"heartbeat_interval": 90000},
        {"batch_size": 0},
        {"batch_size": 101},
        {"batch_size": 1.5},
        {"retries": 3},
    ],
)
def test_what_is_out_of_bounds_or_unknown_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServerClientSettings.model_validate(given)


def test_the_defaults_are_those_that_sites_rely_on() -> None:
    settings = ServerClientSettings()
    assert (settings.timeout, settings.poll_interval, settings.renew_interval) == (30, 5, 60)
    assert (settings.heartbeat_interval, settings.batch_size) == (30, 10)
