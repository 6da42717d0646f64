"""Which control plane a client command talks to, and where its token may go."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent_core.cli.config import Connection, config_file, find
from agent_core.errors import SettingsError
from agent_core.testing.http_server import ScriptedServer, answer

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py


def write(home: Path, text: str, mode: int = 0o600) -> dict[str, str]:
    """A configuration file, and the environment that leads to it."""
    environ = {"HOME": str(home)}
    path = config_file(environ)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(mode)
    return environ


def test_the_environment_is_read(tmp_path: Path) -> None:
    environ = {"REMOTEGPU_URL": "http://gpu:8080/", "REMOTEGPU_TOKEN": "t", "HOME": str(tmp_path)}
    assert find(environ) == Connection(url="http://gpu:8080", token="t")


def test_the_file_is_read_where_the_environment_is_silent(tmp_path: Path) -> None:
    environ = write(tmp_path, 'url = "https://gpu.example.org/api"\ntoken = "t"\n')
    assert find(environ) == Connection(url="https://gpu.example.org/api", token="t")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environ = write(tmp_path, 'url = "http://gpu"\ntoken = "old"\n')
    assert find({**environ, "REMOTEGPU_TOKEN": "new"}).token == "new"


def test_a_files_token_goes_to_that_files_server_alone(tmp_path: Path) -> None:
    environ = write(tmp_path, 'url = "https://gpu.example.org"\ntoken = "t"\n')
    assert find({**environ, "REMOTEGPU_URL": "https://gpu.example.org/"}).token == "t"
    with pytest.raises(SettingsError, match=r"no token for https://other"):
        find({**environ, "REMOTEGPU_URL": "https://other.example.org"})


def test_xdg_config_home_is_followed(tmp_path: Path) -> None:
    assert config_file({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == Path("/x/remotegpu/config.toml")
    assert config_file({"XDG_CONFIG_HOME": "relative", "HOME": "/h"}) == Path(
        "/h/.config/remotegpu/config.toml"
    )


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_token_that_others_can_read_is_warned_of(
    tmp_path: Path, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = write(tmp_path, 'url = "http://gpu"\ntoken = "secret"\n', mode)
    assert find(environ).token == "secret"
    told = capsys.readouterr().err
    assert "chmod 600" in told
    assert "secret" not in told


def test_a_private_file_is_no_cause_for_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find(write(tmp_path, 'url = "http://gpu"\ntoken = "t"\n'))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('url = "http://gpu"\ntokn = "t"\n', "unknown key tokn; did you mean token?"),
        ('url = "http://gpu"\nzzz = "t"\n', "unknown key zzz; it may hold url, token and user"),
        ('url = "http://gpu"\ntoken = 12345678\n', "token must be text in quotes"),
        ('url = "http://gpu\n', "cannot be read"),
        ("\xff", "no control plane is named|cannot be read"),
        ("", "no control plane is named"),
        ('token = "t"\n', "no control plane is named"),
        ('url = "http://gpu"\n', "there is no token for http://gpu"),
        ('url = "http://gpu"\ntoken = "a b"\n', "no HTTP header can carry"),
        ('url = "http://gpu"\ntoken = "a\\nb"\n', "no HTTP header can carry"),
    ],
)
def test_a_wrong_file_is_told_by_name(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        find(write(tmp_path, text))
    assert "config.toml" in str(caught.value) or "header" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["gpu:8080", "ftp://gpu", "http://", "http://u:p@gpu", "http://gpu?x=1", "http://gpu#x",
     "http://gpu:99999", "http://[::1", "http://gpu:0", "file:///etc/passwd"],
)  # fmt: skip
def test_what_is_no_url_of_a_server_is_told(url: str) -> None:
    with pytest.raises(SettingsError, match="no URL of a control plane"):
        find({"REMOTEGPU_URL": url, "REMOTEGPU_TOKEN": "t", "HOME": "/nonexistent"})


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    path = config_file({"HOME": str(tmp_path)})
    path.mkdir(parents=True)  # a directory in its place
    with pytest.raises(SettingsError, match="cannot be read"):
        find({"HOME": str(tmp_path)})


async def test_nothing_of_the_current_directory_is_read(
    server: ScriptedServer, remotegpu: Remotegpu, tmp_path: Path
) -> None:
    """A cloned repository must not be able to send the token anywhere."""
    trap = "http://127.0.0.1:9"
    for name in ("settings.toml", ".secrets.toml", "config.toml", "agent.yaml", ".env"):
        (tmp_path / name).write_text(f'url = "{trap}"\nREMOTEGPU_URL={trap}\n')
    server.on("/api/v1/*", answer({"tasks": [], "next_cursor": None}))
    assert (await remotegpu("tasks")).code == 0
    assert server.requests[0].headers["authorization"] == "Bearer token-of-a-user"


async def test_missing_settings_are_one_sentence_and_exit_2(remotegpu: Remotegpu) -> None:
    done = await remotegpu("tasks")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "REMOTEGPU_URL" in done.err
    assert "REMOTEGPU_TOKEN" in done.err
    assert os.environ["HOME"] in done.err
