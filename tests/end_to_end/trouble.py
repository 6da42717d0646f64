"""The table of docs/trouble.md, the commands that meet trouble, and disks that are really full."""

import contextlib
import os
import pty
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.end_to_end.site import PATIENCE, REMOTEGPU, Site

TABLE = Path(__file__).parents[2] / "docs" / "trouble.md"
GOES_ON = "goes on"
# What stands before the words: the program's name, or the log's time, level and logger.
_FRONT = re.compile(r"remotegpu: |\d\d:\d\d:\d\d \w+ +\w+  ")


class Ended(NamedTuple):
    """A command that came to its end, and what it wrote."""

    code: int
    text: str


@dataclass(kw_only=True)
class Row:
    """One line of the table; its test shows that it is true."""

    condition: str
    quotes: Sequence[str]  # `{name}` stands for something
    exit: str
    kept: str
    proof: str
    shown: bool = field(default=False)

    def ended(self, done: Ended) -> None:
        """The command ended so, and said what the table says."""
        assert done.code == int(self.exit), done
        self._said(done.text)

    def ended_with(self, code: int, text: str) -> None:
        self.ended(Ended(code, text))

    def went_on(self, text: str) -> None:
        """The process that wrote this is still there."""
        assert self.exit == GOES_ON
        self._said(text)

    def says(self, text: str) -> bool:
        """Whether all the words of the table stand in this."""
        lines = [_FRONT.sub("", line, count=1) for line in text.splitlines()]
        return all(any(_pattern(q).fullmatch(line) for line in lines) for q in self.quotes)

    def _said(self, text: str) -> None:
        assert self.says(text), f"docs/trouble.md: {self.quotes}\n{text}"
        assert "Traceback" not in text, text
        self.shown = True


def _pattern(quote: str) -> re.Pattern[str]:
    return re.compile(".+?".join(re.escape(part) for part in re.split(r"\{\w+\}", quote)))


def rows() -> list[Row]:
    """Every line of every table of the page."""
    found = []
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 5 and "`test_" in cells[4]:
            condition, words, code, kept, proof = cells
            quotes = [match[2].strip() for match in re.finditer(r"(`+)(.+?)\1(?!`)", words)]
            found.append(
                Row(
                    condition=condition, quotes=quotes, exit=code, kept=kept, proof=proof.strip("`")
                )
            )
    return found


def run(
    site: Site, *args: str, env: Mapping[str, str], enter: Sequence[str] = (), cwd: str = ""
) -> Ended:
    """A command to its end; its words on both streams."""
    done = subprocess.run(
        [*enter, REMOTEGPU, *args],
        env={**os.environ, "HOME": str(site.root), **env},
        cwd=cwd or site.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
    )
    return Ended(done.returncode, done.stdout.decode(errors="replace"))


def agent(site: Site, *args: str, enter: Sequence[str] = (), **settings: object) -> Ended:
    """An agent that does not stay."""
    return run(site, "agent", *args, env=site.agent_env(**settings), enter=enter)


def server(site: Site, *args: str, enter: Sequence[str] = (), **settings: object) -> Ended:
    """A server that does not stay."""
    return run(site, "server", *args, env=server_env(site, **settings), enter=enter)


def server_env(site: Site, **settings: object) -> dict[str, str]:
    merged = {
        "port": site.port,
        "database": f"sqlite:///{site.root}/server.db",
        "agent_token": site.agent_token,
        "user_token": site.user_token,
        **settings,
    }
    return {f"REMOTEGPU_SERVER__{k.upper()}": str(v) for k, v in merged.items() if v != ""}


def client(site: Site, *args: str, url: str | None = None, token: str | None = None) -> Ended:
    """A user's command."""
    return run(site, *args, env=_client_env(site, url, token))


def _client_env(site: Site, url: str | None = None, token: str | None = None) -> dict[str, str]:
    return {
        "REMOTEGPU_URL": site.url if url is None else url,
        "REMOTEGPU_TOKEN": site.user_token if token is None else token,
    }


def on_a_terminal(site: Site, *args: str) -> Ended:
    """A user's command, and what a terminal is sent."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [REMOTEGPU, *args],
        env={**os.environ, "TERM": "xterm", "HOME": str(site.root), **_client_env(site)},
        stdin=its, stdout=its, stderr=its,
    )  # fmt: skip
    os.close(its)
    sent = bytearray()
    with open(ours, "rb", 0) as screen, contextlib.suppress(OSError):  # EIO: all have closed it
        while part := screen.read(65_536):
            sent += part
    return Ended(process.wait(PATIENCE), sent.decode().replace("\r\n", "\n"))


def piped(site: Site, *args: str) -> tuple[int, bytes, bytes]:
    """A user's command: its exit code, and both of its streams."""
    env = {**os.environ, "HOME": str(site.root), **_client_env(site)}
    done = subprocess.run(
        [REMOTEGPU, *args], env=env, capture_output=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout, done.stderr


def obeying_modes() -> list[str]:
    """What stands before a command so that file modes bind it although root runs it."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A small file system of its own."""

    inside: Path  # as a command behind `enter` names it
    path: Path  # as this process names it
    enter: Sequence[str]

    def fill(self, leave: int = 0) -> None:
        """Take what room there is, but for some bytes."""
        block = b"x" * 4096
        with contextlib.suppress(OSError), (self.path / "filler").open("ab", 0) as file:
            while True:
                file.write(block)
        if leave:
            size = (self.path / "filler").stat().st_size
            os.truncate(self.path / "filler", size - leave)

    def empty(self) -> None:
        (self.path / "filler").unlink()


@contextlib.contextmanager
def small_disk(at: Path, size: str) -> Iterator[Disk]:
    """A tmpfs in a mount namespace of its own, which ends with the process that holds it."""
    at.mkdir()
    own = ["--user", "--map-root-user"] if os.geteuid() else []
    holder = subprocess.Popen(
        ["unshare", *own, "--mount", "--propagation", "private", "sh", "-c",
         f"mount -t tmpfs -o size={size} none {at} && echo mounted && exec sleep 3600"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stderr is not None
    try:
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"no disk can be made here: {holder.stderr.read().decode().strip()}")
        entering = ["--user", "--preserve-credentials"] if os.geteuid() else []
        yield Disk(
            inside=at,
            path=Path(f"/proc/{holder.pid}/root{at}"),
            enter=["nsenter", "--target", str(holder.pid), *entering, "--mount", "--root", "--"],
        )
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        holder.stderr.close()


def install_plugin(directory: Path, name: str, source: str, group: str = "agent_core") -> str:
    """A package that brings one plugin, as an installer leaves it; what PYTHONPATH must be."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}_module:Plugin\n")
    (directory / f"{name}_module.py").write_text(source)
    return str(directory)
