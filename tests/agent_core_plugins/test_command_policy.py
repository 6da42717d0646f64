"""Which commands may run: what blocks, what allows, and what only looks like it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from agent_core import Key, Launch, PluginContext, Task, Verdict
from agent_core.clock import SystemClock
from agent_core_plugins.command_policy import TEXT_LIMIT, CommandPolicy, matches

LS = shutil.which("ls") or ""


async def judged(launch: Launch, tmp_path: Path, **settings: Any) -> Verdict:
    context = PluginContext(
        agent_id="a",
        machine_id="m",
        state_dir=tmp_path,
        runtime_dir=tmp_path,
        max_workers=1,
        clock=SystemClock(),
        log=structlog.get_logger(),
    )
    policy = CommandPolicy(CommandPolicy.Settings.model_validate(settings), context)
    return await policy.validate(Task(id="t", command=launch.text), launch)


def launch(*argv: str, text: str = "", **fields: Any) -> Launch:
    given = {"env": {}, "cwd": "/", "scratch": "/s", "progress": "/p"} | fields
    return Launch(
        start_id="s", key=Key("t", ""), run_no=1, argv=argv, text=text or " ".join(argv), **given
    )


def shell(text: str) -> Launch:
    return launch("/bin/bash", "-c", text, text=text)


async def test_without_rules_everything_may_run(tmp_path: Path) -> None:
    assert (await judged(shell("rm -rf /"), tmp_path)).allowed


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        (shell("sudo reboot"), r"\bsudo\b"),
        (launch("dd", "if=/dev/zero", "of=/dev/sda"), r"of=/dev/sd"),
        (launch("/bin/sh", "/x.script", script=("/x.script", "#!/bin/sh\nmkfs /dev/sda")), "mkfs"),
        (launch("python3", "-c", "import os", text="import os"), "^python3 -c"),
    ],
    ids=["shell text", "argv", "script", "as it is run"],
)  # fmt: skip
async def test_a_blocked_pattern_is_found_wherever_a_command_stands(
    given: Launch, pattern: str, tmp_path: Path
) -> None:
    verdict = await judged(given, tmp_path, blocked_patterns=["harmless", pattern])
    assert not verdict.allowed
    assert pattern in verdict.rule
    assert repr(pattern) in verdict.reason
    assert (await judged(given, tmp_path, blocked_patterns=["harmless"])).allowed


async def test_a_blocked_pattern_wins_over_an_allowed_command(tmp_path: Path) -> None:
    rules = {"allowed_commands": ["ls"], "blocked_patterns": ["/etc"]}
    assert not (await judged(launch("ls", "/etc"), tmp_path, **rules)).allowed
    assert (await judged(launch("ls", "/tmp"), tmp_path, **rules)).allowed


async def test_a_text_that_is_too_long_to_search_is_refused(tmp_path: Path) -> None:
    long = shell("echo " + "x" * TEXT_LIMIT)
    verdict = await judged(long, tmp_path, blocked_patterns=["rm"])
    assert not verdict.allowed
    assert "longer than" in verdict.reason
    assert (await judged(long, tmp_path)).allowed


async def test_a_shell_text_runs_bash_whatever_it_says(tmp_path: Path) -> None:
    assert not (await judged(shell("ls"), tmp_path, allowed_commands=["ls"])).allowed
    assert (await judged(shell("ls"), tmp_path, allowed_commands=["/bin/bash"])).allowed
    assert (await judged(shell("ls"), tmp_path, allowed_commands=["bash"])).allowed


async def test_a_refusal_names_program_and_rule_and_a_consent_its_rule(tmp_path: Path) -> None:
    refusal = await judged(launch("curl", "x"), tmp_path, allowed_commands=["ls"])
    assert not refusal.allowed
    assert "'curl'" in refusal.reason
    assert refusal.rule == "allowed_commands"
    consent = await judged(launch("ls"), tmp_path, allowed_commands=["cat", "ls"])
    assert consent.rule == "allowed_commands: ls"


@pytest.mark.parametrize(
    ("rule", "program", "allowed"),
    [
        ("ls", "ls", True),
        ("ls", LS, True),
        (LS, "ls", True),
        (LS, LS, True),
        ("ls", "/tmp/evil/ls", False),
        ("ls", "./ls", False),
        ("ls", "bin/ls", False),
        ("ls", "ls ", False),
        ("ls", "LS", False),
        ("ls", "lsx", False),
        ("ls", "", False),
        ("ls", "/", False),
        (LS, "/tmp/evil/ls", False),
        (LS, f"/tmp/../{LS}", True),
        ("bin/ls", "bin/ls", True),
        ("./ls", "ls", False),
        ("no-such-program", "/tmp/no-such-program", False),
        ("no-such-program", "no-such-program", True),
    ],
)
def test_a_name_and_a_path_are_one_program_only_where_the_agent_finds_it(
    rule: str, program: str, allowed: bool
) -> None:
    assert matches(rule, program) is allowed


def test_two_names_of_one_file_are_two_programs(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_text("")
    for name in ("ls", "sh"):
        (tmp_path / name).symlink_to(tmp_path / "busybox")
    assert not matches(f"{tmp_path}/ls", f"{tmp_path}/sh")
    assert not matches(f"{tmp_path}/ls", f"{tmp_path}/busybox")


def test_a_folder_that_is_a_link_is_the_folder_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "bin").symlink_to(tmp_path / "usr")
    assert matches(f"{tmp_path}/bin/ls", f"{tmp_path}/usr/ls")


async def test_a_task_with_its_own_path_must_name_its_program_in_full(tmp_path: Path) -> None:
    rules = {"allowed_commands": ["ls"]}
    own_path = {"PATH": "/tmp/evil"}
    verdict = await judged(launch("ls", env=own_path), tmp_path, **rules)
    assert not verdict.allowed
    assert "PATH" in verdict.reason
    assert (await judged(launch(LS, env=own_path), tmp_path, **rules)).allowed
    assert (await judged(launch("ls", env=own_path), tmp_path)).allowed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blocked_patterns": ["fine", "(unclosed"]}, "'(unclosed' is no regular expression"),
        ({"blocked_patterns": ["a{99999999999}"]}, "is no regular expression"),
        ({"allowed_commands": [""]}, "a program is a name"),
        ({"allowed_comands": ["ls"]}, "Extra inputs"),
    ],
)
def test_a_rule_that_cannot_be_used_stops_the_start_with_its_name(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        CommandPolicy.Settings.model_validate(settings)
    assert words in str(raised.value)
