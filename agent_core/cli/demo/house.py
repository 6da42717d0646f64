"""The demo's processes: a control plane and an agent in a temporary directory, and their end."""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import httpx
import psutil

from agent_core.cli.demo.workload import BLOCKED
from agent_core.errors import RemoteGPUError

START_LIMIT: Final = 60.0  # seconds until /health answers, on a very slow machine
STOP_LIMIT: Final = 20.0  # seconds between TERM and KILL of one of our processes
LEAVE_LIMIT: Final = 1.0  # seconds for what the agent left behind; a supervisor heeds no TERM
LOG_LINES: Final = 15  # of a process that died
PORT_TRIES: Final = 3  # somebody else may take a port between our look and the server's
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_LIBC: Final = ctypes.CDLL(None)
_LEGACY: Final = frozenset(
    {"AGENT_PORT", "AGENT_DB_PATH", "AGENT_MAX_WORKERS", "SERVER_URL", "AGENT_ID", "MACHINE_ID",
     "AGENT_TOKEN"}
)  # fmt: skip


class ChildDied(RemoteGPUError):
    """A process of the demo ended by itself; the message holds its last words."""


class House:
    """Owns the temporary directory and every process below it."""

    def __init__(self) -> None:
        # What our agent leaves behind becomes our child, so that we can end it.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self.directory = Path(tempfile.mkdtemp(prefix="remotegpu-demo-"))
        self._runtime = _runtime(self.directory)
        self.user_token = secrets.token_urlsafe(24)
        self.url = ""
        self._agent_token = secrets.token_urlsafe(24)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def open(self, pause: Callable[[float], None]) -> None:
        """Start both; returns when the control plane answers. Raises ChildDied."""
        for attempt in range(1, PORT_TRIES + 1):
            try:
                self._open_server(pause)
                break
            except ChildDied:
                if attempt == PORT_TRIES or _free(int(self.url.rpartition(":")[2])):
                    raise
        self._start(
            "agent",
            {
                "agent": {
                    "state_dir": str(self._private("agent")),
                    "runtime_dir": str(self._runtime),
                    "max_workers": 2,
                },
                "shutdown": {"grace": 5},
                "server_client": {
                    "url": self.url, "token": self._agent_token, "poll_interval": 1,
                    "renew_interval": 1,  # so soon an agent hears that a task is cancelled
                },
                "subprocess_executor": {"grace": 2},
                "command_policy": {"blocked_patterns": [BLOCKED]},
            },
        )  # fmt: skip

    def check(self) -> None:
        """Raises ChildDied if one is gone that nobody stopped."""
        for name, child in self._children.items():
            code = child.poll()
            if code is not None:
                raise ChildDied(
                    f"the {name} ended by itself ({_ending(code)}):\n{self._tail(name)}"
                )

    def agent_lives(self) -> bool:
        """Whether anybody carries a cancel out."""
        return "agent" in self._children and self._children["agent"].poll() is None

    def close(self, hurry: Callable[[], bool]) -> None:
        """End every process and remove the directory. Tasks are cancelled before, by the player."""
        for name in ("agent", "server"):
            if name in self._children:
                _end(self._children.pop(name), hurry)
        _end_leftovers()
        for directory in (self._runtime, self.directory):
            shutil.rmtree(directory, ignore_errors=True)

    def _open_server(self, pause: Callable[[float], None]) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._start(
            "server",
            {
                "server": {
                    "host": "127.0.0.1",
                    "port": port,
                    "database": f"sqlite:///{self._private('server')}/server.db",
                    "agent_token": self._agent_token,
                    "user_token": self.user_token,
                }
            },
        )
        until = time.monotonic() + START_LIMIT
        with httpx.Client(trust_env=False, timeout=5.0) as http:
            while not _healthy(http, self.url):
                self.check()
                if time.monotonic() > until:
                    raise ChildDied(f"the server does not answer:\n{self._tail('server')}")
                pause(0.05)

    def _private(self, name: str) -> Path:
        directory = self.directory / name
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def _start(self, name: str, settings: Mapping[str, Mapping[str, object]]) -> None:
        """The tokens travel in a file that only we can read, never on a command line."""
        file = self.directory / f"{name}.toml"
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(_toml(settings))
        with (self.directory / f"{name}.log").open("wb") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", "agent_core.cli", name, "--settings", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is ours: tasks are cancelled before these stop
                # kill -9 of the demo stops its programs as well; there are no threads here.
                preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
            )

    def _tail(self, name: str) -> str:
        try:
            text = (self.directory / f"{name}.log").read_bytes()[-16_384:]
        except OSError:
            return "(no log)"
        lines = text.decode("utf-8", "replace").splitlines()[-LOG_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (it said nothing)"


def _runtime(directory: Path) -> Path:
    """Where sockets are: in memory if that can be, and with a short name in any case."""
    try:
        room = Path("/dev/shm") / directory.name  # noqa: S108  # mkdir fails if it exists
        room.mkdir(mode=0o700)
    except OSError:
        room = directory / "run"
        room.mkdir(mode=0o700)
    return room


def _prctl(option: int, value: int) -> None:
    _LIBC.prctl(option, value, 0, 0, 0)


def _environment() -> dict[str, str]:
    """Ours without any setting: the demo must not meet the site's own server."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("REMOTEGPU_", "_REMOTEGPU_")) and name not in _LEGACY
    }
    for name in ("NO_PROXY", "no_proxy"):  # loopback is not the proxy's
        environ[name] = ",".join(filter(None, (environ.get(name), "127.0.0.1", "localhost")))
    return environ


def _toml(settings: Mapping[str, Mapping[str, object]]) -> str:
    """JSON's text, numbers and lists are TOML's as well."""
    lines = []
    for table, keys in settings.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _healthy(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _end(child: subprocess.Popen[bytes], hurry: Callable[[], bool]) -> None:
    """TERM, a pause that a second Ctrl-C ends, KILL."""
    child.terminate()
    until = time.monotonic() + STOP_LIMIT
    while child.poll() is None:
        if hurry() or time.monotonic() > until:
            child.kill()
            child.wait()
            return
        time.sleep(0.05)


def _end_leftovers() -> None:
    """What the agent keeps for its next start, such as its supervisor, has no next start here."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        left = psutil.Process().children(recursive=True)
        for process in left:
            try:
                end(process)
            except psutil.NoSuchProcess:
                continue
        if not psutil.wait_procs(left, timeout=LEAVE_LIMIT)[1]:
            break
