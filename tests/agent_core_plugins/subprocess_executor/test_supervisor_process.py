"""The supervisor as a process: spoken to over its socket, signalled, and left alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agent_core_plugins.subprocess_executor import kept
from agent_core_plugins.subprocess_executor.spawning import SUPERVISOR
from agent_core_plugins.subprocess_executor.supervisor import journal
from tests.agent_core_plugins.subprocess_executor.conftest import lives, supervisors

PATIENCE = 20.0


class Peer:
    """One connection, spoken to line by line; the fixture closes it."""

    made: ClassVar[list["Peer"]] = []

    def __init__(self, directory: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(directory / "socket"))
        self.file = self.socket.makefile("rb")
        self.made.append(self)

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def say(self, **line: Any) -> None:
        self.socket.sendall(json.dumps(line).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        raw = self.file.readline()
        assert raw, "it hung up"
        heard: dict[str, Any] = json.loads(raw)
        return heard

    def hung_up(self) -> bool:
        return self.file.readline() == b""

    def hello(self) -> dict[str, Any]:
        self.say(t="hello", v=journal.VERSION)
        return self.hear()

    def start(self, start_id: str, text: str, directory: Path, **more: Any) -> None:
        env = {"PATH": "/usr/bin:/bin", "REMOTEGPU_START_ID": start_id}
        out = [str(directory / f"{start_id}.{name}") for name in ("stdout", "stderr")]
        line = {"s": start_id, "argv": ["/bin/sh", "-c", text], "env": env, "cwd": "/"}
        self.say(t="start", **{**line, "out": out, "cap": 4096, **more})


Begin = Callable[..., Path]


@pytest.fixture
def begin(runtime: Path) -> Iterator[Begin]:
    """Starts a supervisor; its directory."""

    def run(idle: float = 60.0, preexec: Callable[[], None] | None = None) -> Path:
        directory = runtime / f"sup-{len(os.listdir(runtime))}"
        (directory / "f").mkdir(parents=True)
        journal.create(str(directory / "journal"), "journal-1", "boot-1", 1.0)
        with socket.socket(socket.AF_UNIX) as listener, open(directory / "log", "wb") as log:
            listener.bind(str(directory / "socket"))
            listener.listen(16)
            number = listener.fileno()
            command = [sys.executable, "-I", "-S", str(SUPERVISOR), str(directory), str(number)]
            subprocess.run(
                [*command, str(idle)],
                check=True,
                pass_fds=(number,),
                stderr=log,
                env={},
                preexec_fn=preexec,
            )
        return directory

    yield run
    while Peer.made:
        Peer.made.pop().close()
    for directory in runtime.iterdir():
        assert (directory / "log").read_text() == ""


def the_supervisor(runtime: Path) -> int:
    (pid,) = supervisors(runtime)
    return pid


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_tells_a_start_and_its_end(begin: Begin, tmp_path: Path) -> None:
    peer = Peer(begin())
    assert peer.hello()["runs"] == []
    peer.start("a", "exit 3", tmp_path)
    started, end = peer.hear(), peer.hear()
    assert started["t"] == "started"
    assert started["pid"] > 0
    assert (end["t"], end["s"], os.WEXITSTATUS(end["end"]["status"])) == ("end", "a", 3)


def test_the_same_start_sent_twice_runs_once(begin: Begin, tmp_path: Path) -> None:
    peer = Peer(begin())
    peer.hello()
    text = f"echo ran >>{tmp_path}/mark; read line <{tmp_path}/go"
    os.mkfifo(tmp_path / "go")
    peer.start("a", text, tmp_path)
    first = peer.hear()
    peer.start("a", text, tmp_path)
    assert peer.hear() == first
    (tmp_path / "go").write_text("\n")
    assert peer.hear()["t"] == "end"
    peer.start("a", text, tmp_path)
    again = peer.hear()
    assert again["end"]["status"] == 0
    assert (tmp_path / "mark").read_text() == "ran\n"


def test_what_a_dead_agent_left_in_the_socket_never_starts(
    begin: Begin, tmp_path: Path, runtime: Path
) -> None:
    directory = begin()
    dead = Peer(directory)
    dead.hello()
    supervisor = the_supervisor(runtime)
    os.kill(supervisor, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    try:
        dead.start("late", f"echo ran >{tmp_path}/mark", tmp_path)
        new = Peer(directory)
        new.say(t="hello", v=journal.VERSION)
        dead.socket.shutdown(socket.SHUT_RDWR)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    told = new.hear()
    started = {run["s"] for run in told["runs"]}
    # Either it was read before the hello, and then the hello's answer says so, or it never runs.
    new.start("next", "exit 0", tmp_path)
    while new.hear().get("s") != "next":
        pass
    if not started:
        assert not (tmp_path / "mark").exists()
        book = journal.read(str(directory / "journal"))
        assert book is not None
        assert "late" not in book.records


def test_a_hello_hangs_up_on_older_connections_and_lists_what_they_started(
    begin: Begin, tmp_path: Path
) -> None:
    directory = begin()
    old = Peer(directory)
    old.hello()
    old.start("ended", "exit 4", tmp_path)
    old.hear(), old.hear()
    old.start("runs", "exec sleep 1000", tmp_path)
    old.hear()
    new = Peer(directory)
    runs = {run["s"]: run for run in new.hello()["runs"]}
    assert os.WEXITSTATUS(runs["ended"]["end"]["status"]) == 4
    assert "end" not in runs["runs"]
    assert old.hung_up()
    new.say(t="signal", s="runs", signal=9, n=1)
    heard = {line["t"]: line for line in (new.hear(), new.hear())}
    assert heard["signalled"]["done"] is True
    assert os.WTERMSIG(heard["end"]["end"]["status"]) == 9


def test_what_was_forgotten_is_not_told_again_and_what_lives_cannot_be_forgotten(
    begin: Begin, tmp_path: Path
) -> None:
    directory = begin()
    old = Peer(directory)
    old.hello()
    old.start("ended", "exit 0", tmp_path)
    old.hear(), old.hear()
    old.start("runs", "exec sleep 1000", tmp_path)
    old.hear()
    old.say(t="forget", s=["ended", "runs", "unknown"])
    assert [run["s"] for run in Peer(directory).hello()["runs"]] == ["runs"]


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b"[]\n",
        b"{}\n",
        b'{"t":"start","s":"x"}\n',
        b'{"t":"start","s":"../x","argv":["true"],"env":{},"cwd":"/","out":["a","b"],"cap":9}\n',
        b'{"t":"signal","s":"a","signal":"nine","n":1}\n',
        b"\xff\xfe\n",
        b"[" * 100000 + b"\n",
    ],
)
def test_a_line_that_makes_no_sense_ends_its_connection_and_no_run(
    runtime: Path, tmp_path: Path, begin: Begin, line: bytes
) -> None:
    directory = begin()
    peer = Peer(directory)
    peer.hello()
    peer.start("a", "exec sleep 1000", tmp_path)
    peer.hear()
    peer.socket.sendall(line)
    assert peer.hung_up()
    assert [run["s"] for run in Peer(directory).hello()["runs"]] == ["a"]
    (directory / "log").write_text("")  # it said why


def test_nobody_is_listened_to_before_hello(begin: Begin, tmp_path: Path) -> None:
    peer = Peer(begin())
    peer.start("a", f"echo >{tmp_path}/mark", tmp_path)
    assert peer.hung_up()
    assert not (tmp_path / "mark").exists()


def test_no_signal_but_kill_ends_it(begin: Begin, runtime: Path) -> None:
    directory = begin()
    Peer(directory).hello()
    pid = the_supervisor(runtime)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        os.kill(pid, number)
        Peer(directory).hello()
    assert lives(pid)


def test_tasks_get_the_default_signals_and_the_limits_that_it_was_given(
    begin: Begin, tmp_path: Path
) -> None:
    def like_a_background_job() -> None:
        import resource

        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 5000))

    peer = Peer(begin(preexec=like_a_background_job))
    peer.hello()
    text = "grep -E 'Sig(Ign|Blk)' /proc/self/status; ulimit -Sn; ulimit -Hn"
    peer.start("a", text, tmp_path)
    peer.hear(), peer.hear()
    lines = kept.read(str(tmp_path / "a.stdout")).head.decode().splitlines()
    of_libc = 1 << 31 | 1 << 32  # signals 32 and 33: whoever began us may ignore them, for good
    assert [int(line.split()[1], 16) & ~of_libc for line in lines[:2]] == [0, 0]
    assert lines[2:] == ["300", "5000"]


def test_more_runs_than_the_tasks_own_limit_of_files_allows(begin: Begin, tmp_path: Path) -> None:
    def few_files() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))

    peer = Peer(begin(preexec=few_files))
    peer.hello()
    os.mkfifo(tmp_path / "go")
    for number in range(100):
        peer.start(f"run-{number}", f"ulimit -n; read line <{tmp_path}/go", tmp_path)
        assert peer.hear()["t"] == "started"
    writer = os.open(tmp_path / "go", os.O_RDWR)
    os.write(writer, b"\n" * 100)
    ended = {peer.hear()["s"] for _ in range(100)}
    os.close(writer)
    assert len(ended) == 100


def test_without_a_run_and_an_agent_it_leaves_and_leaves_its_journal(
    begin: Begin, runtime: Path, tmp_path: Path
) -> None:
    directory = begin(idle=0.1)
    pid = the_supervisor(runtime)
    peer = Peer(directory)
    peer.hello()
    os.mkfifo(tmp_path / "go")
    peer.start("a", f"read line <{tmp_path}/go", tmp_path)
    peer.hear()
    peer.socket.shutdown(socket.SHUT_RDWR)
    time.sleep(0.3)
    assert lives(pid)  # something runs
    (tmp_path / "go").write_text("\n")
    until(lambda: not lives(pid))
    book = journal.read(str(directory / "journal"))
    assert book is not None
    assert book.records["a"].end is not None


def test_it_stays_small_and_needs_no_processor_while_nothing_happens(
    begin: Begin, runtime: Path
) -> None:
    peer = Peer(begin())
    peer.hello()
    pid = the_supervisor(runtime)
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0])
    assert resident < 16 * 1024

    def switches() -> int:
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    before = switches()
    time.sleep(0.5)
    assert switches() - before <= 1  # it may just have been on its way to sleep


def test_a_nameless_daemon_is_ended_with_the_last_run_that_may_have_left_it(
    begin: Begin, tmp_path: Path
) -> None:
    """Own session, no marker, no parent: with two runs it may be either's, with one it is its."""
    peer = Peer(begin())
    peer.hello()
    for name in ("go-a", "go-b", "held"):
        os.mkfifo(tmp_path / name)
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    daemon = f"(setsid env -i /bin/sh -c 'echo >{tmp_path}/there; exec /bin/sleep 1000' &)"
    peer.start("b", f"read line <{tmp_path}/go-b", tmp_path)
    peer.hear()
    text = f"exec 9>{tmp_path}/held; {daemon}; read line <{tmp_path}/go-a"
    peer.start("a", text, tmp_path)
    peer.hear()
    until((tmp_path / "there").exists)
    (tmp_path / "go-a").write_text("\n")
    assert peer.hear()["s"] == "a"
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)  # it may be b's, so it lives
    (tmp_path / "go-b").write_text("\n")
    assert peer.hear()["s"] == "b"
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_daemon_that_ends_under_a_living_run_leaves_no_zombie(
    begin: Begin, tmp_path: Path, runtime: Path
) -> None:
    peer = Peer(begin())
    peer.hello()
    os.mkfifo(tmp_path / "go")
    text = "for i in 1 2 3 4 5; do (setsid true &); done"
    peer.start("a", f"{text}; echo >{tmp_path}/there; read x <{tmp_path}/go", tmp_path)
    run = peer.hear()["pid"]
    until((tmp_path / "there").exists)
    pid = the_supervisor(runtime)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: children.read_text().split() == [str(run)])
    (tmp_path / "go").write_text("\n")
    assert peer.hear()["t"] == "end"


def test_a_leftover_that_writes_for_ever_does_not_delay_the_end(
    begin: Begin, tmp_path: Path
) -> None:
    peer = Peer(begin())
    peer.hello()
    peer.start("a", "setsid yes & sleep 0.05; exit 6", tmp_path)
    peer.hear()
    assert os.WEXITSTATUS(peer.hear()["end"]["status"]) == 6


def test_a_fork_bomb_ends_with_its_run(begin: Begin, tmp_path: Path) -> None:
    peer = Peer(begin())
    peer.hello()
    os.mkfifo(tmp_path / "held")
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    script = tmp_path / "fork"
    script.write_text('#!/bin/sh\n[ "$1" -gt 400 ] && exit; setsid "$0" $(($1 + 1)) & sleep 1000\n')
    script.chmod(0o755)
    peer.start("a", f"exec 9>{tmp_path}/held; {script} 0 & sleep 0.1; exit 0", tmp_path)
    peer.hear()
    assert peer.hear()["t"] == "end"
    assert os.read(reader, 1) == b""
    os.close(reader)
