"""Which commands may run: what blocks, what allows, and what only looks like it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from agent_core import Key, Launch, PluginContext, Task, Verdict
from agent_core.clock import SystemClock
from agent_core_plugins.command_policy import TEXT_LIMIT, CommandPolicy
from agent_core_plugins.command_policy.programs import allowing, find, listed

LS = shutil.which("ls") or ""


async def judged(launch: Launch, tmp_path: Path, kind: str = "", **settings: Any) -> Verdict:
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
    direct = not kind and launch.argv[:2] != ("/bin/bash", "-c")
    task = Task(id="t", command=launch.text, type=kind or "shell", exec=direct)
    return await policy.validate(task, launch)


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
    assert not (await judged(long, tmp_path, allowed_commands=["echo"])).allowed  # bash, then


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("ls -l", ("ls", "-l")),
        ("  ls\t'a b' \"c\"d\n", ("ls", "a b", "cd")),
        (f"{LS} ''", (LS, "")),
        ("'ls' '*'", ("ls", "*")),
    ],
)
async def test_one_simple_command_is_judged_and_executed_as_its_words(
    text: str, argv: tuple[str, ...], tmp_path: Path
) -> None:
    verdict = await judged(shell(text), tmp_path, allowed_commands=["ls"])
    assert verdict.allowed
    assert verdict.argv == argv
    assert verdict.program == LS


@pytest.mark.parametrize(
    "text",
    [
        *("ls *", "ls; id", "ls $(id)", "ls|wc", "A=1 ls", "ls ~", "ls {a,b}", "ls \\x", "ls &"),
        *('ls "$HOME"', "ls > x", "time ls", "exit 3", "ls # x", "! ls", "ls\nid"),
        *("ls\u00a0x", "\u0455s"),  # a blank and a letter that only look like ours
    ],
)
async def test_what_takes_a_shell_is_allowed_only_where_bash_is(text: str, tmp_path: Path) -> None:
    refusal = await judged(shell(text), tmp_path, allowed_commands=["ls"])
    assert not refusal.allowed
    assert "takes a shell" in refusal.reason
    consent = await judged(shell(text), tmp_path, allowed_commands=["ls", "bash"])
    assert consent.allowed
    assert consent.argv == ("/bin/bash", "-c", text)


async def test_where_the_shell_is_on_the_list_it_runs_what_else_is_not(tmp_path: Path) -> None:
    for rule in ("bash", "/bin/bash"):
        verdict = await judged(shell("ls"), tmp_path, allowed_commands=[rule])
        assert verdict.argv == ("/bin/bash", "-c", "ls")


async def test_a_refusal_names_program_and_rule_and_a_consent_its_rule(tmp_path: Path) -> None:
    refusal = await judged(launch("curl", "x"), tmp_path, allowed_commands=["ls"])
    assert not refusal.allowed
    assert "'curl'" in refusal.reason
    assert refusal.rule == "allowed_commands"
    consent = await judged(launch("ls"), tmp_path, allowed_commands=["cat", "ls"])
    assert consent.rule == "allowed_commands: ls"


def rule_for(rule: str, program: str, cwd: str = "/", path: str = "/usr/bin:/bin") -> str | None:
    there = find(program, cwd, path)
    return allowing(listed([rule], path), there) if there else None


@pytest.mark.parametrize(
    ("rule", "program", "allowed"),
    [
        ("ls", "ls", True),
        ("ls", LS, True),
        (LS, "ls", True),
        (LS, LS, True),
        ("ls", "/tmp/evil/ls", False),
        ("ls", "./ls", False),
        ("ls", "bin/ls", True),  # of the folder /, which is that very file
        ("ls", "ls ", False),
        ("ls", "LS", False),
        ("ls", "lsx", False),
        ("ls", "", False),
        ("ls", "/", False),
        (LS, f"/tmp/../{LS}", True),
        ("no-such-program", "no-such-program", False),
    ],
)
def test_a_name_and_a_path_are_one_program_only_where_they_are_one_file(
    rule: str, program: str, allowed: bool
) -> None:
    assert (rule_for(rule, program) == rule) is allowed


def a_program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_of_many_programs_in_one_file_each_is_allowed_by_its_own_name(tmp_path: Path) -> None:
    a_program(tmp_path / "busybox")
    for name in ("ls", "sh"):
        (tmp_path / name).symlink_to(tmp_path / "busybox")
    place = str(tmp_path)
    assert rule_for("ls", "ls", path=place)
    assert not rule_for("ls", "sh", path=place)
    assert not rule_for("ls", "busybox", path=place)
    assert rule_for("busybox", "sh", path=place)


def test_links_are_followed_from_both_sides(tmp_path: Path) -> None:
    a_program(tmp_path / "python3.99")
    (tmp_path / "python3").symlink_to("python3.99")
    (tmp_path / "bin").symlink_to(tmp_path)
    place = str(tmp_path)
    assert rule_for("python3", f"{place}/python3.99", path=place)
    assert rule_for(f"{place}/python3.99", "python3", path=place)
    assert rule_for(f"{place}/bin/python3", f"{place}/python3", path=place)


def test_a_file_that_cannot_be_executed_and_a_relative_folder_are_passed_over(
    tmp_path: Path,
) -> None:
    (tmp_path / "ls").write_text("")
    (tmp_path / "folder" / "ls").mkdir(parents=True)
    path = f":.:{tmp_path}:{tmp_path}/folder:/usr/bin"
    assert find("ls", str(tmp_path), path) == "/usr/bin/ls"


async def test_what_a_task_says_of_its_environment_leads_to_no_other_program(
    tmp_path: Path,
) -> None:
    rules = {"allowed_commands": ["ls", "python3"]}
    verdict = await judged(launch("ls", env={"PATH": "/tmp/evil"}), tmp_path, **rules)
    assert verdict.program == LS
    for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "GCONV_PATH"):
        refusal = await judged(launch("ls", env={name: "/tmp/evil"}), tmp_path, **rules)
        assert not refusal.allowed
        assert name in refusal.reason
        assert (await judged(launch("python3", "x", env={name: "/x"}), tmp_path, **rules)).allowed


async def test_a_script_is_judged_as_what_its_first_line_names(tmp_path: Path) -> None:
    async def of(*argv: str, allowed: list[str]) -> Verdict:
        given = launch(*argv, "/s.script", text="print()", script=("/s.script", "print()"))
        return await judged(given, tmp_path, kind="script", allowed_commands=allowed)

    assert (await of("/usr/bin/env", "python3", allowed=["python3"])).argv == (
        "python3",
        "/s.script",
    )
    assert (await of("/usr/bin/env", "python3", allowed=["env"])).argv[0] == "/usr/bin/env"
    assert not (await of("/usr/bin/env", "-S python3 -x", allowed=["python3"])).allowed
    assert not (await of("/bin/bash", allowed=["python3"])).allowed
    assert (await of("/bin/bash", allowed=["bash"])).allowed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blocked_patterns": ["fine", "(unclosed"]}, "'(unclosed' is no regular expression"),
        ({"blocked_patterns": ["a{99999999999}"]}, "is no regular expression"),
        ({"allowed_commands": [""]}, "a program is a name"),
        ({"allowed_commands": ["./ls"]}, "neither a bare name nor a whole path"),
        ({"allowed_comands": ["ls"]}, "Extra inputs"),
    ],
)
def test_a_rule_that_cannot_be_used_stops_the_start_with_its_name(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        CommandPolicy.Settings.model_validate(settings)
    assert words in str(raised.value)
