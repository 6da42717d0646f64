"""Many simulated agents against one server process: how the cost of the server grows with them.

    python -m tests.load.fleet [--agents 100 300 1000] [--database postgresql] [--json FILE]

Agents are coroutines of this process that speak the real protocol over real sockets: register, a
claim that hangs, events, renewals. Their tasks do nothing but take time. Prints figures.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.end_to_end.site import Site
from tests.load.measuring import Results, machine
from tests.load.workload import DATABASES, Books, a_site, database_of, say

WAIT = 30  # seconds that a claim hangs
GATHER = 0.04  # seconds for which an agent's events wait for company
CLOSED = (ConnectionError, asyncio.IncompleteReadError, OSError)


@dataclass
class Seen:
    """What the agents saw, since it was last emptied."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    granted: int = 0
    claims: int = 0  # that brought something
    waited: list[float] = field(default_factory=list)  # from submit to grant
    ended: int = 0
    refused: list[str] = field(default_factory=list)


class Line:
    """One kept connection to the server, one request at a time."""

    def __init__(self, site: Site, token: str) -> None:
        self._port = site.port
        self._head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nX-Agent-Protocol: 1\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, path: str, body: object) -> tuple[int, Any]:
        """Business code and data."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        content = json.dumps(body).encode()
        writer.write(
            f"POST /api/v1/{path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        head = await reader.readuntil(b"\r\n\r\n")
        lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
        size = next(int(value) for name, _, value in lines if name == b"content-length")
        answer = json.loads(await reader.readexactly(size))
        return answer["code"], answer["data"]

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


class Agent:
    """One simulated agent with two slots."""

    def __init__(self, site: Site, number: int, seen: Seen, duration: float) -> None:
        self.id = f"agent-{number}"
        self.seen = seen
        self._duration = duration
        self._claiming, self._telling = (Line(site, site.agent_token) for _ in range(2))
        self._slots = 2
        self._free = asyncio.Event()
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1000)
        self._held: dict[str, str] = {}  # attempt by task
        self._seq = itertools.count(1)
        self._number = itertools.count(1)
        self._stream = f"stream-{number}-{random.getrandbits(64):x}"
        self._lease = 300.0
        self._who = {"agent_id": self.id, "machine_id": f"machine-{number}"}

    async def register(self) -> None:
        _, data = await self._telling.call(
            "agent/register",
            {**self._who, "version": "fleet", "max_workers": 2, "capabilities": ["events", "wait"]},
        )
        assert {"events", "wait"} <= set(data["capabilities"]), data
        self._lease = data["lease_sec"]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for job in (self._claims(group), self._tell(), self._renew()):
                group.create_task(job)

    async def _claims(self, group: asyncio.TaskGroup) -> None:
        while True:
            while self._slots <= 0:
                self._free.clear()
                await self._free.wait()
            asked = {
                **self._who,
                "limit": self._slots,
                "wait_sec": WAIT,
                "request_id": f"{self._stream}:{next(self._number)}",
                "free": {"slots": self._slots},
            }
            begun = time.perf_counter()
            try:
                code, data = await self._claiming.call("agent/tasks/claim", asked)
            except CLOSED:
                continue  # by `claim_anew`
            if code:
                self.seen.refused.append(f"claim {code}")
                await asyncio.sleep(1)
                continue
            tasks = data["tasks"] or []
            if tasks:
                self.seen.claims += 1
                self.seen.seconds["claim that brought tasks"].append(time.perf_counter() - begun)
            for task in tasks:
                self.seen.granted += 1
                self.seen.waited.append(time.time() - _epoch(task["created_at"]))
                self._slots -= 1
                self._held[task["id"]] = task["attempt_id"]
                group.create_task(self._work(task))

    def claim_anew(self) -> None:
        """Hang up on a claim that hangs, and ask again by another connection."""
        self._claiming.close()

    async def _work(self, task: dict[str, Any]) -> None:
        about = {"task_id": task["id"], "attempt_id": task["attempt_id"], "run_no": 1}
        await self._queue.put({**about, "kind": "start", "started_at": _now(), "at": _now()})
        await asyncio.sleep(random.expovariate(1 / self._duration) if self._duration else 0)
        end = {"exit_code": 0, "status": "completed", "reason": "exited", "error": ""}
        end |= {"stdout": "done\n", "stderr": "", "truncated": {"stdout": 0, "stderr": 0}}
        await self._queue.put({**about, **end, "kind": "complete", "at": _now()})
        self._slots += 1
        self._free.set()

    async def _tell(self) -> None:
        while True:
            events = [await self._queue.get()]
            await asyncio.sleep(GATHER)
            while len(events) < 100 and not self._queue.empty():
                events.append(self._queue.get_nowait())
            for event in events:
                event["seq"] = next(self._seq)
            results = await self._send("events", events)
            for event, result in zip(events, results, strict=True):
                if result["code"]:
                    self.seen.refused.append(f"{event['kind']} {result['code']}")
                if event["kind"] == "complete":
                    self.seen.ended += 1
                    self._held.pop(event["task_id"], None)

    async def _send(self, what: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        begun = time.perf_counter()
        code, data = await self._telling.call(
            "agent/events", {**self._who, "stream": self._stream, "events": events}
        )
        self.seen.seconds[what].append(time.perf_counter() - begun)
        assert code == 0, (code, data)
        return list(data["results"])

    async def _renew(self) -> None:
        """Beside the heartbeat, as events that go through the queue's connection in their turn."""
        while True:
            await asyncio.sleep(self._lease / 3 * random.uniform(0.8, 1.0))
            for task_id, attempt_id in list(self._held.items()):
                event = {"kind": "renew", "task_id": task_id, "attempt_id": attempt_id}
                await self._queue.put({**event, "run_no": 1, "at": _now(), "extend_sec": 300})

    def close(self) -> None:
        self._claiming.close()
        self._telling.close()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _epoch(text: str) -> float:
    import datetime as dt

    return dt.datetime.fromisoformat(text).timestamp()


@dataclass(frozen=True)
class Watched:
    """The processes whose cost is told."""

    server: psutil.Process
    database: psutil.Process | None

    def cpu(self) -> dict[str, float]:
        spent = {"server": _cpu(self.server)}
        if self.database:
            family = [self.database, *self.database.children(recursive=True)]
            spent["postgresql"] = sum(map(_cpu, family))
        return spent


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        # Of those that have ended, the parent holds what they used.
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


@contextlib.contextmanager
def counted(watched: Watched, figures: dict[str, float], what: str, per: float) -> Iterator[None]:
    before = watched.cpu()
    yield
    for name, now in watched.cpu().items():
        figures[f"{what}_{name}_cpu_ms"] = (now - before[name]) * 1000 / max(per, 1)


def _percentiles(figures: dict[str, float], what: str, seconds: list[float]) -> None:
    if seconds:
        ordered = sorted(seconds)
        figures[f"{what}_p50_ms"] = statistics.median(ordered) * 1000
        figures[f"{what}_p99_ms"] = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000


async def submit(line: Line, fields: dict[str, Any]) -> None:
    code, data = await line.call("tasks", fields)
    assert code == 0, (code, data)


async def steady(site: Site, seen: Seen, rate: float, seconds: float) -> int:
    """Submit so many tasks a second, at random moments; returns how many."""
    lines = [Line(site, site.user_token) for _ in range(8)]
    count = 0

    async def lane(line: Line) -> None:
        nonlocal count
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(random.expovariate(rate / len(lines)))
            await submit(line, {"command": "true"})
            count += 1

    await asyncio.gather(*(lane(line) for line in lines))
    while seen.ended < count:
        await asyncio.sleep(0.1)
    for line in lines:
        line.close()
    return count


async def measure(site: Site, watched: Watched, count: int, given: argparse.Namespace) -> Any:
    """Everything that is told of so many agents."""
    figures: dict[str, float] = {}
    seen = Seen()
    agents = [Agent(site, number, seen, given.duration) for number in range(count)]
    gate = asyncio.Semaphore(32)

    async def register(agent: Agent) -> None:
        async with gate:
            await agent.register()

    with counted(watched, figures, "register", count):
        await asyncio.gather(*(register(agent) for agent in agents))
    running = asyncio.gather(*(agent.run() for agent in agents))
    await asyncio.sleep(3)  # their claims hang
    with counted(watched, figures, "idle_per_agent_and_minute", count * given.idle / 60):
        await asyncio.sleep(given.idle)
    figures["server_rss_mb"] = watched.server.memory_info().rss / 2**20
    say(f"{count} agents: tasks as they come ...")
    rate = given.rate
    seen.seconds.clear()
    before = watched.cpu()
    submitted = await steady(site, seen, rate, given.steady)
    for name, now in watched.cpu().items():
        figures[f"steady_{name}_cpu_ms_per_task"] = (now - before[name]) * 1000 / submitted
    _percentiles(figures, "submit_to_grant", seen.waited)
    _percentiles(figures, "events_request", seen.seconds["events"])
    say(f"{count} agents: a backlog ...")
    await backlog(site, agents, watched, figures, given)
    figures["server_rss_mb_at_the_end"] = watched.server.memory_info().rss / 2**20
    figures["refused"] = len(seen.refused)
    if seen.refused:
        say(f"refused: {seen.refused[:5]}")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    for agent in agents:
        agent.close()
    return figures


async def backlog(
    site: Site,
    agents: list[Agent],
    watched: Watched,
    figures: dict[str, float],
    given: argparse.Namespace,
) -> None:
    """Everybody takes what waits, as fast as the server gives it."""
    seen = agents[0].seen
    books = Books(site.database)
    like = "like-this-one"
    line = Line(site, site.user_token)
    # It waits for a machine that is not there; then all of them may go anywhere at once.
    await submit(line, {"command": "true", "id": like, "machine_id": "nowhere"})
    await asyncio.to_thread(books.multiply, like, given.backlog)
    ended, granted, claims = seen.ended, seen.granted, seen.claims
    seen.seconds.clear()
    before = watched.cpu()
    begun = time.perf_counter()
    await asyncio.to_thread(books.open_to_all, "nowhere")
    for agent in agents:  # nobody told the server, so what hangs there would hang on
        agent.claim_anew()
    while seen.ended - ended < given.backlog:
        await asyncio.sleep(0.05)
    wall = time.perf_counter() - begun
    figures["backlog_tasks_per_second"] = (seen.granted - granted) / wall
    figures["backlog_claims_per_second"] = (seen.claims - claims) / wall
    for name, now in watched.cpu().items():
        spent = (now - before[name]) * 1000
        figures[f"backlog_{name}_cpu_ms_per_task"] = spent / given.backlog
    _percentiles(figures, "backlog_claim", seen.seconds["claim that brought tasks"])
    _percentiles(figures, "backlog_events_request", seen.seconds["events"])
    line.close()


def _files_for(agents: int) -> None:
    """Two connections each, and some for the rest. The server is a child and inherits the limit."""
    needed = 2 * agents + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise SystemExit(f"{agents} agents need {needed} open files; raise `ulimit -Hn {hard}`")
        # This process alone: what the server makes of what it is given belongs to the measure.
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--agents", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--database", choices=DATABASES, default="postgresql")
    parser.add_argument("--rate", type=float, default=50.0, help="tasks a second as they come")
    parser.add_argument("--duration", type=float, default=1.0, help="seconds of a task (mean)")
    parser.add_argument("--steady", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--idle", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--backlog", type=int, default=5000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    given = parser.parse_args()
    _files_for(max(given.agents))
    results = Results()
    results.add("machine", **machine(), database=given.database)
    with tempfile.TemporaryDirectory(prefix="remotegpu-fleet-") as folder:
        for count in given.agents:
            root = Path(folder) / str(count)
            with a_site(root) as site, database_of(site, given.database) as database:
                server = site.start_server()
                watched = Watched(psutil.Process(server.popen.pid), database)
                say(f"{count} agents ...")
                results.add(f"{count} agents", **asyncio.run(measure(site, watched, count, given)))
    results.show()
    if given.json:
        given.json.write_text(json.dumps(results.sections, indent=2) + "\n")


if __name__ == "__main__":
    main()
