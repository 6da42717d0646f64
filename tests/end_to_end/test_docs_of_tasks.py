"""docs/tasks.md: its command lines run as they stand, and say what the page says."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.site import PATIENCE, REMOTEGPU, Site

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
_BLOCK = re.compile(r"^```sh\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
_END = "--- end of block"


def blocks() -> list[tuple[str, list[str]]]:
    """Each block of commands, and the lines that the page shows below it."""
    found = _BLOCK.findall(PAGE.read_text())
    return [(commands, told.splitlines()) for commands, told in found]


def is_like(shown: str, line: str) -> bool:
    """`…` stands for anything."""
    pattern = ".*".join(re.escape(part.strip()) for part in shown.split("…"))
    return re.fullmatch(pattern, " ".join(line.split())) is not None


def missing(shown: list[str], said: str) -> list[str]:
    """What the page shows and nobody said in that order."""
    lines = iter(said.splitlines())
    return [each for each in shown if not any(is_like(each, line) for line in lines)]


def test_every_command_line_does_what_the_page_says(site: Site, tmp_path: Path) -> None:
    site.start_server()
    (site.root / "settings.toml").write_text('[agent.labels]\nzone = "a"\n')
    site.start_agent(agent__machine_id="gpu3").says("ready")
    found = blocks()
    script = "set -eu\n" + "".join(f"{commands}echo '{_END}'\n" for commands, _ in found)
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["bash", "-c", script], cwd=work, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
        env={**os.environ, "REMOTEGPU_URL": site.url, "REMOTEGPU_TOKEN": site.user_token,
             "HOME": str(tmp_path), "USER": "ada",
             "PATH": f"{Path(REMOTEGPU).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.split(f"{_END}\n")
    for (commands, shown), answer in zip(found, said, strict=False):
        assert missing(shown, answer) == [], f"{commands}\nsaid:\n{answer}\n{done.stderr}"


def test_the_page_shows_what_commands_say() -> None:
    assert len(blocks()) >= 8
    assert sum(len(shown) for _, shown in blocks()) >= 15


@pytest.mark.parametrize(
    ("shown", "line", "alike"),
    [("a … c", "a  b c", True), ("… c", "a c", True), ("a c", "a b c", False), ("a", "ab", False)],
)
def test_dots_stand_for_anything(shown: str, line: str, alike: bool) -> None:
    assert is_like(shown, line) is alike
