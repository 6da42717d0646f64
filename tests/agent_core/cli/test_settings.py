"""`config`: effective settings with their sources, and a file checked before a start."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py

FILE = """\
[agent]
max_workers = 3
[site_b.agent]
max_workers = 5
[server_client]
token = "very-secret"
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "some.toml").write_text(FILE)
    return f"{tmp_path}/some.toml"


async def test_each_value_is_shown_with_its_source_and_secrets_with_neither(
    remotegpu: Remotegpu, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTEGPU_SITE", "site_b")
    monkeypatch.setenv("AGENT_ID", "me")
    done = await remotegpu("config", "--settings", file, "--json")
    found = {row["name"]: row for row in json.loads(done.out)["settings"]}
    assert found["agent.max_workers"]["value"] == 5
    assert found["agent.max_workers"]["source"] == f"{file}, line 4"
    assert found["agent.id"] == {
        "name": "agent.id",
        "value": "me",
        "source": "environment AGENT_ID",
    }
    assert found["shutdown.grace"]["source"] == "default"
    assert found["server_client.token"]["source"] == f"{file}, line 6"
    shown = await remotegpu("config", "--settings", file)
    assert "very-secret" not in done.out + shown.out
    assert "max_workers" in shown.out


async def test_a_file_is_checked_as_a_start_would(
    remotegpu: Remotegpu, file: str, tmp_path: Path
) -> None:
    assert (await remotegpu("config", "check", file)).code == 0
    (tmp_path / "wrong.yaml").write_text("port: 8090\nsecurity:\n  blocked_patterns: ['(']\n")
    wrong = await remotegpu("config", "check", f"{tmp_path}/wrong.yaml")
    assert wrong.code == 2
    assert f"{tmp_path}/wrong.yaml, line 3: command_policy.blocked_patterns" in wrong.err
    missing = await remotegpu("config", "check", f"{tmp_path}/none.toml")
    assert missing.code == 2
    assert "there is no settings file" in missing.err
    mixed = await remotegpu("config", "--json", "check", file)
    assert mixed.code == 2
