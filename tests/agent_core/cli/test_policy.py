"""`policy check`: what may run, by which rule, and as what, without running it."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

Remotegpu = Callable[..., Awaitable[Any]]  # of conftest.py

RULES = '[command_policy]\nallowed_commands = ["echo", "python3"]\nblocked_patterns = ["secret"]\n'


@pytest.fixture
def rules(tmp_path: Path) -> str:
    (tmp_path / "rules.toml").write_text(RULES)
    return f"{tmp_path}/rules.toml"


@pytest.mark.parametrize(
    ("given", "code", "argv"),
    [
        (["echo 'a b'"], 0, ["echo", "a b"]),
        (["echo", "*"], 0, ["echo", "*"]),
        (["echo a | cat"], 4, ["/bin/bash", "-c", "echo a | cat"]),
        (["cat x"], 4, ["cat", "x"]),
        (["echo secret"], 4, None),
    ],
)
async def test_a_command_is_judged_as_the_agent_would(
    remotegpu: Remotegpu, rules: str, given: list[str], code: int, argv: list[str] | None
) -> None:
    done = await remotegpu("policy", "check", "--settings", rules, "--json", "--", *given)
    told = json.loads(done.out)
    assert done.code == code
    assert told["allowed"] is (code == 0)
    assert told["rule"]
    assert bool(told["reason"]) is (code == 4)
    assert argv is None or told["argv"] == argv


async def test_kinds_of_texts_are_judged_as_what_runs_them(
    remotegpu: Remotegpu, rules: str
) -> None:
    async def code(kind: str, text: str) -> int:
        return (
            await remotegpu("policy", "check", "--settings", rules, "--type", kind, "--", text)
        ).code

    assert await code("python", "print(1)") == 0
    assert await code("script", "#!/usr/bin/env python3\nprint(1)") == 0
    assert await code("script", "echo a") == 4


async def test_without_rules_everything_may_run_and_that_is_said(
    remotegpu: Remotegpu, tmp_path: Path
) -> None:
    (tmp_path / "none.toml").write_text("")
    done = await remotegpu("policy", "check", "--settings", f"{tmp_path}/none.toml", "--", "rm *")
    assert done.code == 0
    assert "every command may run" in done.err
    assert "'rm *'" in done.out
