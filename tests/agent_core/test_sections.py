"""The types that settings are made of, and the bounds of core's own tables."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent_core import Duration, SecretText, Section, Text
from agent_core.sections import (
    CORE_SECTIONS,
    AgentSection,
    LocalApiSection,
    LogSection,
    PluginsSection,
    ShutdownSection,
    default_state_dir,
)


class Waits(Section):
    wait: Duration = 0.0


class Words(Section):
    word: Text = ""
    secret: SecretText = ""


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        *((5, 5), (0.25, 0.25), ("5", 5), ("30s", 30), ("5m", 300), ("1.5 h", 5400)),
        *(("1d", 86400), ("250ms", 0.25), (" 2m ", 120), ("0", 0), ("366d", 366 * 86400)),
    ],
)
def test_a_duration_is_seconds_or_text(given: object, seconds: float) -> None:
    assert Waits.model_validate({"wait": given}).wait == seconds


@pytest.mark.parametrize(
    "given",
    [
        *(-1, "-1s", True, "", "s", "5 minutes", "5M", "1h30m", "1e3", "٥s", math.inf, math.nan),
        *("inf", "nan", "367d", [5], None, "9" * 400 + "d"),
    ],
)
def test_what_is_no_duration_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        Waits.model_validate({"wait": given})


@pytest.mark.parametrize(
    ("given", "text"), [("a", "a"), (5, "5"), (True, "true"), (False, "false"), (1.5, "1.5")]
)
def test_a_text_is_always_text(given: object, text: str) -> None:
    assert Words.model_validate({"word": given}).word == text


@pytest.mark.parametrize("given", [None, [], {}, "a\0b", math.nan, b"x"])
def test_what_is_no_text_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        Words.model_validate({"word": given}, strict=True)


def test_a_secret_is_an_ordinary_text_that_is_not_shown() -> None:
    words = Words(word="seen", secret="unseen")
    assert words.secret == "unseen"
    assert "seen" in repr(words)
    assert "unseen" not in repr(words)


def test_what_was_given_is_not_shown_in_an_error() -> None:
    with pytest.raises(ValidationError) as caught:
        Words.model_validate({"word": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (AgentSection, {"max_workers": 0}),
        (AgentSection, {"max_workers": 1025}),
        (AgentSection, {"id": "x" * 129}),
        (AgentSection, {"machine_id": "x" * 129}),
        (AgentSection, {"id": "two words"}),
        (AgentSection, {"id": "a\r\nX-Header: b"}),
        (AgentSection, {"maxworkers": 1}),
        (ShutdownSection, {"grace": -1}),
        (ShutdownSection, {"grace": "2h"}),
        (LocalApiSection, {"port": 0}),
        (LocalApiSection, {"port": 65536}),
        (LogSection, {"level": "loud"}),
        (LogSection, {"format": "xml"}),
        (PluginsSection, {"enable": ["x"] * 257}),
    ],
)
def test_every_value_has_a_bound(model: type[Section], values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(values)


def test_paths_begin_at_home_or_where_the_program_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.chdir(tmp_path)
    section = AgentSection.model_validate({"state_dir": "~/x/../s", "runtime_dir": "r"})
    assert section.state_dir == Path("/somewhere/s")
    assert section.runtime_dir == tmp_path / "r"
    assert AgentSection.model_validate({"runtime_dir": ""}).runtime_dir is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_the_state_of_root_is_the_machines_and_of_others_their_own() -> None:
    assert default_state_dir() == Path("/var/lib/remotegpu-agent")
    done = subprocess.run(
        [sys.executable, "-c", "from agent_core.sections import default_state_dir as d; import os;"
         "os.setuid(12345); print(d())"],
        env={"HOME": "/home/somebody"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "/home/somebody/.local/state/remotegpu-agent\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root's state is the machine's")
def test_the_state_of_a_user_is_below_their_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_state_dir() == Path("/home/somebody/.local/state/remotegpu-agent")


def test_every_key_of_core_says_what_it_means() -> None:
    for name, model in CORE_SECTIONS.items():
        for key, info in model.model_fields.items():
            assert info.description, f"{name}.{key}"
