"""plugins and agent: what a person reads of their settings before anything runs."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent_core import __version__
from agent_core.plugins import DEFAULTS

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py


async def test_plugins_are_listed_in_the_order_they_are_asked(remotegpu: Remotegpu) -> None:
    done = await remotegpu("plugins")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["ORDER", "PLUGIN", "PACKAGE", "VERSION", "HOOKS"]
    assert [line[1] for line in lines[1:]] == list(DEFAULTS)
    assert {tuple(line[2:4]) for line in lines[1:]} == {("remotegpu", __version__)}


async def test_enabled_plugins_come_first_and_disabled_ones_not(
    remotegpu: Remotegpu, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(
        '[plugins]\nenable = ["command_policy"]\ndisable = ["machine_metrics"]\n'
    )
    told = json.loads((await remotegpu("plugins", "--settings", "s.toml", "--json")).out)
    names = [plugin["name"] for plugin in told["plugins"]]
    assert names[0] == "command_policy"
    assert "machine_metrics" not in names
    assert told["plugins"][0]["hooks"] == ["validate"]
    assert told["plugins"][0]["order"] == 1


@pytest.mark.parametrize("command", ["plugins", "agent"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no settings file"),
        ("[plugins\n", "settings.toml"),
        ("[plugin]\n", 'did you mean "plugins"'),
        ('[plugins]\nenabel = ["x"]\n', "enabel"),
    ],
)
async def test_settings_that_cannot_be_used_are_exit_2_in_one_sentence(
    remotegpu: Remotegpu, tmp_path: Path, command: str, text: str | None, words: str
) -> None:
    file = tmp_path / "settings.toml"
    if text is not None:
        file.write_text(text)
    done = await remotegpu(command, "--settings", str(file))
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert "Traceback" not in done.err
    told = await remotegpu(command, "--settings", str(file), "--json")
    assert json.loads(told.err)["error"]["exit_code"] == 2


async def test_an_unknown_plugin_is_told(remotegpu: Remotegpu, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('[plugins]\nenable = ["comand_policy"]\n')
    done = await remotegpu("plugins", "--settings", "s.toml")
    assert done.code == 1
    assert 'did you mean "command_policy"' in done.err


async def test_an_agent_that_cannot_start_says_why(remotegpu: Remotegpu, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        f'[agent]\nstate_dir = "{tmp_path}/state"\n[plugins]\ndisable = ["subprocess_executor"]\n'
    )
    done = await remotegpu("agent", "--settings", "s.toml", "--json")
    assert (done.code, done.out) == (1, "")
    assert "no enabled plugin executes" in json.loads(done.err.splitlines()[-1])["error"]["message"]
