"""What the tests of the command share: a server on a real socket, and one run of a command line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from agent_core.cli.run import run
from agent_core.testing.http_server import ScriptedServer

TOKEN = "token-of-a-user"


class Done(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def nothing_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads the configuration of whoever runs it, nor a settings file near it."""
    for name in ("REMOTEGPU_URL", "REMOTEGPU_TOKEN", "XDG_CONFIG_HOME", "_REMOTEGPU_COMPLETE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "ada")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedServer]:
    """A server that answers from a script; the command's environment names it."""
    async with ScriptedServer() as scripted:
        monkeypatch.setenv("REMOTEGPU_URL", scripted.url)
        monkeypatch.setenv("REMOTEGPU_TOKEN", TOKEN)
        yield scripted


@pytest.fixture
def remotegpu(capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[Done]]:
    """Run a command line in this process, in a thread as a shell would beside the server."""

    async def call(*args: str) -> Done:
        capsys.readouterr()
        code = await asyncio.to_thread(run, list(args))
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call
