"""A site of one's own for a test: real server and agents as processes, on loopback."""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.end_to_end.records import (
    AgentFile,
    Mark,
    eldest,
    end_everything_marked,
    marked_processes,
    marking,
    marks_in,
)
from tests.end_to_end.relay import Relay

REMOTEGPU = str(Path(sys.executable).parent / "remotegpu")
# Of a server whose claims do not wait: its agents have two tasks ready, whatever runs.
POLLED = {"extensions": '["events", "commands", "logs"]'}
PATIENCE = 60.0  # seconds until a thing that must happen is called missing
FINAL = {"completed", "failed", "cancelled"}


def wait_for(what: Callable[[], Any], why: str, patience: float = PATIENCE) -> Any:
    """The first true value of `what`; fails with `why` when it does not come."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {patience:g} s in vain: {why}")


def free_port() -> int:
    """Below those that the kernel gives to connections, so that it is still free in a moment."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Process:
    """One `remotegpu` process, its log in a file."""

    def __init__(
        self, args: list[str], env: Mapping[str, str], log: Path, enter: Sequence[str] = ()
    ) -> None:
        """`enter` stands before the command and becomes it, such as `nsenter`."""
        self.log = log
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [*enter, REMOTEGPU, *args],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What this process has written, not what another wrote before it."""
        return self.log.read_bytes()[self._from :].decode(errors="replace")

    def says(self, words: str) -> None:
        """Wait until it has written this."""
        wait_for(lambda: words in self.text, f"{words!r} in {self.log.name}:\n{self.text[-2000:]}")

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """As a power cut would, for this process alone."""
        self.popen.kill()
        self.popen.wait(PATIENCE)

    def stop(self, patience: float = PATIENCE) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return self.popen.wait(patience)

    def signal(self, signum: int) -> None:
        if self.alive:
            self.popen.send_signal(signum)


class Gate:
    """Tasks wait at it until the test opens it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.wait = f"until [ -e {path} ]; do sleep 0.05; done"  # for a task's shell

    def open(self) -> None:
        self._path.touch()


class Site:
    """A control plane and its agents in one temporary directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.agent_token = secrets.token_hex(16)
        self.user_token = secrets.token_hex(16)
        # Short, since a socket lies in it, and on tmpfs where there is one.
        fast = Path("/dev/shm")
        self.runtime = Path(tempfile.mkdtemp(prefix="rg-", dir=fast if fast.is_dir() else None))
        self.database = f"sqlite:///{root}/server.db"
        self.server: Process | None = None
        self.agents: dict[str, Process] = {}
        self.relays: list[Relay] = []
        self.marks_file = root / "marks"

    # --- processes

    def start_server(self, **settings: object) -> Process:
        env = {
            "REMOTEGPU_SERVER__PORT": str(self.port),
            "REMOTEGPU_SERVER__DATABASE": self.database,
            "REMOTEGPU_SERVER__AGENT_TOKEN": self.agent_token,
            "REMOTEGPU_SERVER__USER_TOKEN": self.user_token,
            **{f"REMOTEGPU_SERVER__{k.upper()}": str(v) for k, v in settings.items()},
        }
        self.server = Process(["server"], env, self.root / "server.log")
        wait_for(self._healthy, "the server answers /health")
        return self.server

    def _healthy(self) -> bool:
        assert self.server is not None
        code = self.server.popen.poll()
        assert code is None, f"the server ended with {code}:\n{self.server.text}"
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200)
        return False

    def agent_env(self, name: str = "one", **settings: object) -> dict[str, str]:
        """`settings` are written `table__key=value`."""
        merged = {
            "agent__state_dir": self.root / f"agent-{name}",
            "agent__runtime_dir": self.runtime,
            "server_client__url": self.url,
            "server_client__token": self.agent_token,
            "server_client__poll_interval": 0.2,
            "server_client__heartbeat_interval": 1,
            "shutdown__grace": 10,
            "subprocess_executor__grace": 2,
            **settings,
        }
        return {f"REMOTEGPU_{key.upper()}": str(value) for key, value in merged.items()}

    def start_agent(self, name: str = "one", **settings: object) -> Process:
        process = Process(
            ["agent"], self.agent_env(name, **settings), self.root / f"agent-{name}.log"
        )
        self.agents[name] = process
        return process

    def relay(self) -> Relay:
        """A way to the server for one agent (`server_client__url=relay.url`) that can be cut."""
        self.relays.append(Relay(self.port))
        return self.relays[-1]

    def supervisors(self) -> list[int]:
        """Processes that own the runs of agents of this site."""
        return eldest(
            [
                pid
                for pid in marked_processes(str(self.runtime))
                if b"/supervisor\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
        )

    def file(self, name: str = "one") -> AgentFile:
        return AgentFile(self.root / f"agent-{name}" / "agent.db")

    def show(self) -> None:
        """Print what its processes wrote."""
        for process in (*self.agents.values(), *filter(None, [self.server])):
            print(f"--- {process.log.name}\n{process.log.read_bytes().decode(errors='replace')}")

    def close(self) -> None:
        """Leave no process: cancel what runs, stop agents and server, end their supervisors."""
        for process in (*self.agents.values(), *filter(None, [self.server])):
            if process.alive:
                process.kill()
        for relay in self.relays:
            relay.close()
        end_everything_marked(str(self.root))
        end_everything_marked(str(self.runtime))
        shutil.rmtree(self.runtime, ignore_errors=True)

    # --- the users' side

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """HTTP status and envelope."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method)
        request.add_header("Authorization", f"Bearer {token or self.user_token}")
        request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def submit(self, command: str, **fields: object) -> str:
        status, answer = self.call("POST", "/api/v1/tasks", {"command": command, **fields})
        assert status == 201, answer
        return str(answer["data"]["id"])

    def submit_marked(self, body: str, **fields: object) -> str:
        """A task that marks its begin and its end; see `marks`."""
        return self.submit(marking(self.marks_file, body), **fields)

    def marks(self, what: str = "", task_id: str = "") -> list[Mark]:
        return [
            mark
            for mark in marks_in(self.marks_file)
            if what in ("", mark.what) and task_id in ("", mark.task_id)
        ]

    def gate(self, name: str = "gate") -> Gate:
        return Gate(self.root / name)

    def task(self, task_id: str) -> dict[str, Any]:
        _, answer = self.call("GET", f"/api/v1/tasks/{task_id}")
        return dict(answer["data"])

    def holds(self, task_id: str, name: str = "one") -> None:
        """Wait until an agent has stored it: that it is assigned is the server's word alone."""
        wait_for(lambda: self.file(name).status(task_id), f"agent {name} holds task {task_id}")

    def told(self, name: str = "one") -> None:
        """Wait until an agent knows that the server has heard of everything so far."""
        wait_for(lambda: not self.file(name).unsent(), f"agent {name} has told everything")

    def wait(self, task_id: str, *statuses: str, patience: float = PATIENCE) -> dict[str, Any]:
        """The task once it is in one of these states (none named: final)."""
        wanted = set(statuses) or FINAL

        def there() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task["status"] in wanted else None

        return dict(wait_for(there, f"task {task_id} becomes {wanted}", patience))

    def cli(self, *args: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """The `remotegpu` command as a user has it."""
        env = {**os.environ, "REMOTEGPU_URL": self.url, "REMOTEGPU_TOKEN": self.user_token}
        return subprocess.run(
            [REMOTEGPU, *args],
            env=env,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@contextlib.contextmanager
def site_in(root: Path) -> Iterator[Site]:
    site = Site(root)
    try:
        yield site
    finally:
        site.close()
