"""The same work done by other task queues, in the minute in which we do it. Prints a table.

    python -m tests.load.bench_peers [--tasks 1000] [--rounds 3] [--only ours,huey] [--json FILE]

Each runs `/bin/true` as a process of its own, two at once, on this machine; each is installed into
a throw-away environment by its own package manager, and is left out with the reason where that
does not work. They promise different things: the table says what a finished task has survived.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.site import wait_for
from tests.load.measuring import Crew, crew_of, machine
from tests.load.workload import DEFAULTS, a_site, run_tasks, run_xargs, say

PATIENCE = 600.0  # seconds for one peer's round


class Missing(Exception):
    """This peer cannot be had here."""


Round = Callable[[int], float]  # how many tasks -> seconds


@dataclass(frozen=True)
class Peer:
    """One way to run many commands, made ready by `ready`."""

    name: str
    survives: str  # what an accepted task outlives
    ready: Callable[[Path], "contextlib.AbstractContextManager[Round]"]


def installed(root: Path, *packages: str) -> Path:
    """The bin directory of an environment of its own. Raises Missing."""
    place = root / "venv"
    steps = (
        [sys.executable, "-m", "venv", str(place)],
        [str(place / "bin" / "pip"), "install", "--quiet", "--only-binary=:all:", *packages],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode:
            last = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise Missing(f"it does not install: {last[:200]}")
    return place / "bin"


@contextlib.contextmanager
def ours(root: Path) -> Iterator[Round]:
    with a_site(root) as site:
        site.start_server()
        agent = site.start_agent(**DEFAULTS)
        crew: Crew = crew_of(site, agent)
        run_tasks(site, crew, 50)
        yield lambda count: run_tasks(site, crew, count)[0]


@contextlib.contextmanager
def xargs(root: Path) -> Iterator[Round]:
    yield run_xargs


@contextlib.contextmanager
def task_spooler(root: Path) -> Iterator[Round]:
    program = shutil.which("tsp")
    if program is None:
        raise Missing("it is not installed (package task-spooler)")
    env = {**os.environ, "TS_SOCKET": str(root / "socket"), "TS_MAXFINISHED": "10"}

    def tsp(*args: str) -> str:
        return subprocess.run(
            [program, *args], env=env, capture_output=True, text=True, check=True
        ).stdout

    def go(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            tsp("-n", "/bin/true")  # -n: no output is kept
        busy = ("running", "queued")
        wait_for(lambda: not any(word in tsp() for word in busy), "the last tasks end", PATIENCE)
        return time.perf_counter() - begun

    tsp("-S", "2")
    try:
        yield go
    finally:
        tsp("-K")


HUEY = """
import subprocess
from huey import SqliteHuey
huey = SqliteHuey(filename={file!r}, fsync=True)
@huey.task()
def run():
    subprocess.run(["/bin/true"], check=True)
    return True
"""
HUEY_ROUND = """
import sys, time
from jobs import huey, run
begun = time.perf_counter()
results = [run() for _ in range(int(sys.argv[1]))]
for result in results:
    result.get(blocking=True, backoff=1.0, max_delay=0.05)
print(time.perf_counter() - begun)
"""


@contextlib.contextmanager
def huey(root: Path) -> Iterator[Round]:
    tools = installed(root, "huey")
    (root / "jobs.py").write_text(HUEY.format(file=str(root / "queue.db")))
    (root / "round.py").write_text(HUEY_ROUND)
    env = {**os.environ, "PYTHONPATH": str(root)}
    consumer = subprocess.Popen(
        [str(tools / "huey_consumer"), "jobs.huey", "-w", "2", "-k", "process", "-d", "0.01", "-q"],
        cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield lambda count: _printed(tools / "python", root, env, count)
    finally:
        consumer.terminate()
        consumer.wait(60)


def _printed(python: Path, root: Path, env: dict[str, str], count: int) -> float:
    """Whatever it leaves in a temporary directory goes with ours."""
    env = {**env, "TMPDIR": str(root)}
    done = subprocess.run(
        [str(python), str(root / "round.py"), str(count)],
        cwd=root, env=env, capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


# Its package brings the server as a library; its own cluster of one machine keeps no journal.
HQ_ROUND = """
import sys, time
from pathlib import Path
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
with LocalCluster(server_dir=str(Path(__file__).parent / "hq")) as cluster:
    cluster.start_worker(WorkerConfig(cores=2))
    client = cluster.client()
    def go(count):
        job = Job()
        for _ in range(count):
            job.program(["/bin/true"], stdout=None, stderr=None)
        client.wait_for_jobs([client.submit(job)])
    go(4)
    begun = time.perf_counter()
    go(int(sys.argv[1]))
    print(time.perf_counter() - begun)
"""


@contextlib.contextmanager
def hyperqueue(root: Path) -> Iterator[Round]:
    tools = installed(root, "hyperqueue")
    (root / "round.py").write_text(HQ_ROUND)
    yield lambda count: _printed(tools / "python", root, dict(os.environ), count)


RAY_ROUND = """
import subprocess, sys, time
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
@ray.remote(num_cpus=1)
def run():
    subprocess.run(["/bin/true"], check=True)
ray.get([run.remote() for _ in range(4)])
begun = time.perf_counter()
ray.get([run.remote() for _ in range(int(sys.argv[1]))])
print(time.perf_counter() - begun)
"""


@contextlib.contextmanager
def ray(root: Path) -> Iterator[Round]:
    tools = installed(root, "ray")
    (root / "round.py").write_text(RAY_ROUND)
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    yield lambda count: _printed(tools / "python", root, env, count)


PEERS = (
    Peer("xargs -P2", "nothing", xargs),
    Peer("ours", "kill -9 and power cut of server and agent; result on record", ours),
    Peer("task-spooler", "nothing: the queue is in memory", task_spooler),
    Peer("huey", "power cut (SQLite with fsync); a task that was begun is lost", huey),
    Peer("hyperqueue", "nothing here: its library keeps no journal", hyperqueue),
    Peer("ray", "nothing: the queue is in memory", ray),
)


def measure(peer: Peer, tasks: int, rounds: int, yardstick: list[float]) -> dict[str, object]:
    """Its rounds, an xargs beside each; or why it is missing."""
    say(f"{peer.name} ...")
    with tempfile.TemporaryDirectory(prefix="rg-peer-") as folder:
        try:
            with peer.ready(Path(folder)) as go:
                ratios, rates = [], []
                for _ in range(rounds):
                    base = run_xargs(tasks)
                    yardstick.append(base)
                    wall = go(tasks)
                    rates.append(tasks / wall)
                    ratios.append(base / wall)
        except Missing as error:
            return {"peer": peer.name, "missing": str(error)}
        except (subprocess.SubprocessError, AssertionError, OSError, ValueError) as error:
            return {"peer": peer.name, "missing": f"it failed: {str(error)[:200]}"}
    return {
        "peer": peer.name,
        "tasks_per_second": statistics.median(rates),
        "ratio_to_xargs": statistics.median(ratios),
        "worst": min(ratios),
        "best": max(ratios),
        "survives": peer.survives,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="NAMES")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name]
    yardstick: list[float] = []
    rows = [
        measure(peer, given.tasks, given.rounds, yardstick)
        for peer in PEERS
        if not names or peer.name in names
    ]
    about = machine()
    print(f"\n{about['date']}, {about['cores']} cores, Linux {about['kernel']}, "
          f"{given.tasks} x /bin/true, {given.rounds} rounds\n")  # fmt: skip
    print(
        "| queue | tasks/s | x xargs -P2 (worst–best) | an accepted task survives |\n"
        "|---|---|---|---|"
    )
    for row in rows:
        if "missing" in row:
            print(f"| {row['peer']} | – | – | {row['missing']} |")
        else:
            print(
                f"| {row['peer']} | {row['tasks_per_second']:.0f} | {row['ratio_to_xargs']:.2f} "
                f"({row['worst']:.2f}–{row['best']:.2f}) | {row['survives']} |"
            )
    if given.json:
        given.json.write_text(json.dumps({"machine": about, "peers": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
