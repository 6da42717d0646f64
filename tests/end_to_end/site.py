"""A site of one's own for a test: real server and agents as processes, on loopback."""

import contextlib
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
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

REMOTEGPU = str(Path(sys.executable).parent / "remotegpu")
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One `remotegpu` process, its log in a file."""

    def __init__(self, args: list[str], env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [REMOTEGPU, *args],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """As a power cut would, for this process alone."""
        self.popen.kill()
        self.popen.wait(PATIENCE)

    def stop(self, patience: float = PATIENCE) -> int:
        """SIGTERM, and its exit code."""
        if self.popen.poll() is None:
            self.popen.terminate()
        return self.popen.wait(patience)


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
        self.server: Process | None = None
        self.agents: dict[str, Process] = {}

    # --- processes

    def start_server(self, **settings: object) -> Process:
        env = {
            "REMOTEGPU_SERVER__PORT": str(self.port),
            "REMOTEGPU_SERVER__DATABASE": f"sqlite:///{self.root}/server.db",
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

    def close(self) -> None:
        """Leave no process: cancel what runs, stop agents and server, end their supervisors."""
        for agent in self.agents.values():
            if agent.popen.poll() is None:
                agent.kill()
        if self.server and self.server.popen.poll() is None:
            self.server.kill()
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

    def task(self, task_id: str) -> dict[str, Any]:
        _, answer = self.call("GET", f"/api/v1/tasks/{task_id}")
        return dict(answer["data"])

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


def marked_processes(text: str) -> list[int]:
    """Processes whose environment or command line holds this text, ours excepted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            if text.encode() in told:
                found.append(int(entry.name))
    return found


def end_everything_marked(text: str) -> None:
    for pid in marked_processes(text):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def site_in(root: Path) -> Iterator[Site]:
    site = Site(root)
    try:
        yield site
    finally:
        site.close()
