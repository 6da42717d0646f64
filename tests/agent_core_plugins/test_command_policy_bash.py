"""What is read as one simple command is what bash would have run."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from agent_core_plugins.command_policy.words import simple

NAMES = ("p", "echo", "printf", "test", "cd", "time", "if", "exec", "x.y", "a-b", "%1", "p:q", "[")
PIECES = (
    *NAMES, " ", "  ", "\t", "a", "b=c", "1", "-n", "--", "'", '"', "''", '""', "'a b'", '"a b"',
    "'*'", '"\u00e9"', "@", "%", "+", "=", ":", ",", ".", "/", "_", "^", "~", "*", "?", "{a,b}",
    "[", "]", "\\", "$", "$HOME", "`", "!", "#", "&", "|", ";", "(", ")", "<", ">", "\n", "\r",
    "\x01", "\x7f", "\u00a0", "\u3000", "\u0435", "'\n'", '"\t"', "'\\'", '"!"', "!!", "<<E\n",
    "2>&1", "$(p)", "a#b", "#a", "a=~b",
    "~/x", "-", "0", "//", "./p", "../x",
)  # fmt: skip
SAFE = tuple(piece for piece in PIECES if simple("p " + piece) is not None)
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.builds(
        lambda name, words, odd: f"{name} {' '.join(words)}{odd}",
        st.sampled_from(NAMES),
        st.lists(st.sampled_from(SAFE), max_size=5),
        st.sampled_from(("", "", "", *PIECES)),
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).map("p {}".format),
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs, each of which prints its own name and its arguments, and exits 7."""
    folder = tmp_path_factory.mktemp("bin")
    for name in NAMES:
        program = folder / name
        program.write_text('#!/bin/sh\nprintf \'%s\\0\' "${0##*/}" "$@"\nexit 7\n')
        program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def without_builtins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What bash reads before a text: it has no builtin left then."""
    names = subprocess.run(["bash", "-c", "compgen -b"], capture_output=True, text=True, check=True)
    others = " ".join(name for name in names.stdout.split() if name != "enable")
    path = tmp_path_factory.mktemp("rc") / "rc"
    path.write_text(f"enable -n {others}\nenable -n enable\n")
    return path


def compare(text: str, programs: Path, rc: Path) -> None:
    words = simple(text)
    if words is None or words[0] not in NAMES:
        event("left to bash")
        return
    event("taken")
    there, env = programs / words[0], {"PATH": str(programs), "LC_ALL": "C.UTF-8"}
    how: dict[str, Any] = {"capture_output": True, "cwd": programs}
    ours = subprocess.run(words, executable=there, env=env, check=False, **how)
    env["BASH_ENV"] = str(rc)
    bash = subprocess.run(["/bin/bash", "-c", text], env=env, check=False, **how)
    assert (ours.stdout, ours.returncode) == (bash.stdout, bash.returncode), (text, bash.stderr)
    assert bash.stdout == b"".join(word.encode() + b"\0" for word in words)


@given(texts)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_taken_is_what_bash_would_run(
    programs: Path, without_builtins: Path, text: str
) -> None:
    compare(text, programs, without_builtins)


@pytest.mark.engines
@given(texts)
@settings(
    max_examples=8000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.timeout(600)
def test_what_is_taken_is_what_bash_would_run_at_length(
    programs: Path, without_builtins: Path, text: str
) -> None:
    compare(text, programs, without_builtins)
