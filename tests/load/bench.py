"""Tasks a second against `xargs -P`, and where the time goes. Prints figures, judges nothing.

    python -m tests.load.bench [--tasks 2000] [--rounds 4] [--database postgresql] [--json FILE]

Server and agent are real processes with their durable defaults, in a directory of their own.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.end_to_end.site import Site, wait_for
from tests.load.measuring import Crew, Results, crew_of, halted, machine, wakeups
from tests.load.workload import (
    DATABASES,
    DEFAULTS,
    Books,
    a_site,
    database_of,
    run_tasks,
    run_xargs,
    say,
)

LANES = 2  # submissions to the idle agent at once; it has two slots
# Put before a process by PYTHONPATH, in the counting pass alone: tracing costs time.
COUNTING = """
import atexit, os, sqlite3, sqlite3.dbapi2, sys
count = {"commits": 0}
if os.environ["BENCH_DATABASE"] == "postgresql" and "server" in sys.orig_argv:
    import psycopg
    plain_commit = psycopg.Connection.commit
    def commit(connection):
        count["commits"] += 1
        plain_commit(connection)
    psycopg.Connection.commit = commit
def trace(statement):
    if statement.lstrip()[:6].upper() == "COMMIT":
        count["commits"] += 1
plain = sqlite3.connect
def connect(*args, **named):
    connection = plain(*args, **named)
    connection.set_trace_callback(trace)
    return connection
sqlite3.connect = sqlite3.dbapi2.connect = connect
def write():
    with open(os.path.join(os.environ["BENCH_COUNTS"], str(os.getpid())), "w") as file:
        file.write(str(count["commits"]))
atexit.register(write)
"""


def throughput(
    site: Site, crew: Crew, results: Results, *, tasks: int, rounds: int, workers: int
) -> None:
    """Interleaved rounds, so that a noisy moment of the machine meets both sides."""
    size = max(1, tasks // rounds)
    ours, theirs, ratios = [], [], []
    cpu: Counter[str] = Counter()
    run_tasks(site, crew, 50)  # caches are warm in the rounds that count
    for number in range(rounds):
        xargs = run_xargs(size, workers)
        wall, spent = run_tasks(site, crew, size)
        ours.append(wall)
        theirs.append(xargs)
        ratios.append(xargs / wall)
        cpu.update(spent)
        say(f"round {number + 1}/{rounds}: {size / wall:.0f}/s, xargs {size / xargs:.0f}/s")
    done = size * rounds
    results.add(
        f"throughput with {workers} workers, {done} x /bin/true",
        tasks_per_second=done / sum(ours),
        xargs_per_second=done / sum(theirs),
        ratio_to_xargs_median=statistics.median(ratios),
        ratio_to_xargs_worst=min(ratios),
        ratio_to_xargs_best=max(ratios),
        **{f"{name}_cpu_ms_per_task": spent * 1000 / done for name, spent in cpu.items()},
        cpu_ms_per_task=sum(cpu.values()) * 1000 / done,
    )


def crowded(site: Site, crew: Crew, results: Results, *, tasks: int, waiting: list[int]) -> None:
    """CPU for each task while so many others wait behind it; the few of those that ran count."""
    books = Books(site.database)
    done = "SELECT count(*) FROM tasks WHERE status = 'completed'"
    figures: dict[str, float] = {}
    for crowd in waiting:
        with halted(crew.agent, crew.supervisor):
            books.multiply(site.submit("/bin/true", exec=True, priority=9), crowd - 1)
            before = books.value(done)
            _, spent = run_tasks(site, crew, tasks, priority=1)
        books.forget_waiting()
        ran = books.value(done) - before
        for name, seconds in spent.items():
            figures[f"{crowd}_waiting_{name}_cpu_ms_per_task"] = seconds * 1000 / ran
    results.add(f"while others wait, {tasks} tasks each", **figures)


def latency(site: Site, results: Results, *, submissions: int) -> None:
    """From the user's request to the first thing that the task itself does, on an idle agent."""
    marks = site.root / "started"
    marks.mkdir(exist_ok=True)
    taken: list[float] = []

    def lane(count: int, rng: random.Random) -> None:
        for number in range(count):
            time.sleep(rng.uniform(0, 0.5))  # not in step with the agent's polls
            mark = marks / f"{threading.get_ident()}-{number}"
            begun = time.time()
            site.submit(f"date +%s%N > {mark}.new && mv {mark}.new {mark}")
            wait_for(mark.exists, "the task starts")
            taken.append(int(mark.read_text()) / 1e9 - begun)

    lanes = [
        threading.Thread(target=lane, args=(-(-submissions // LANES), random.Random(number)))
        for number in range(LANES)
    ]
    for each in lanes:
        each.start()
    for each in lanes:
        each.join()
    ordered = sorted(taken)
    results.add(
        f"submit to start on an idle agent, {len(taken)} submissions",
        p50_ms=statistics.median(ordered) * 1000,
        p99_ms=ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000,
        best_ms=ordered[0] * 1000,
    )


def idle(crew: Crew, results: Results, *, duration: float) -> None:
    """Nothing to do, with a server that has nothing either."""
    time.sleep(3)  # what the last tasks left is told and checkpointed
    before, woken = crew.cpu(), wakeups(crew)
    time.sleep(duration)
    after, woken_after = crew.cpu(), wakeups(crew)
    figures: dict[str, float] = {}
    for name, process in crew.items():
        memory = process.memory_full_info()
        figures[f"{name}_rss_mb"] = memory.rss / 2**20
        figures[f"{name}_private_mb"] = memory.uss / 2**20
        figures[f"{name}_cpu_percent_of_a_core"] = (after[name] - before[name]) / duration * 100
        figures[f"{name}_wakeups_per_second"] = (woken_after[name] - woken[name]) / duration
    results.add(f"idle, {duration:g} s", **figures)


def startup(site: Site, results: Results, *, times: int) -> None:
    """From exec to the moment at which the server has the first claim."""
    taken = []
    for number in range(times):
        relay, claimed = site.relay(), threading.Event()

        def watch(when: str, call: str, claimed: threading.Event = claimed) -> None:
            if (when, call) == ("asked", "tasks/claim"):
                claimed.set()

        relay.watch = watch
        begun = time.perf_counter()
        agent = site.start_agent(f"start{number}", **DEFAULTS, server_client__url=relay.url)
        assert claimed.wait(60), agent.text
        taken.append(time.perf_counter() - begun)
        agent.stop()
    results.add(
        f"start to first claim, {times} starts",
        median_ms=statistics.median(taken) * 1000,
        best_ms=min(taken) * 1000,
    )


def counted(root: Path, results: Results, *, tasks: int, database: str = "sqlite") -> None:
    """Requests and commits of a pass of its own, whose time does not count."""
    hook, counts = root / "hook", root / "counts"
    for each in (hook, counts):
        each.mkdir(parents=True)
    (hook / "sitecustomize.py").write_text(COUNTING)
    hooks = {"PYTHONPATH": str(hook), "BENCH_COUNTS": str(counts), "BENCH_DATABASE": database}
    before = dict(os.environ)
    try:
        with a_site(root) as site, database_of(site, database):
            os.environ |= hooks  # not for the programs of a database
            server = site.start_server()
            relay = site.relay()
            agent = site.start_agent(**DEFAULTS, server_client__url=relay.url)
            agent_pid, server_pid = agent.popen.pid, server.popen.pid
            crew = crew_of(site, agent)
            relay.requests.clear()
            run_tasks(site, crew, tasks)
            calls = Counter(call.split("/")[-1] for call in relay.requests)
            agent.stop()
            server.stop()
    finally:
        for name in hooks:
            os.environ.pop(name, None)
        os.environ |= before
    commits = {
        name: int((counts / str(pid)).read_text())
        for name, pid in (("agent", agent_pid), ("server", server_pid))
    }
    results.add(
        f"for each task, counted over {tasks}",
        spawns=1,  # no shell, no wrapper: the task's own process alone
        requests=sum(calls.values()) / tasks,
        **{f"requests_{name}": number / tasks for name, number in sorted(calls.items())},
        agent_commits=commits["agent"] / tasks,
        server_commits_with_submit=commits["server"] / tasks,
    )


def timed(root: Path, results: Results, given: argparse.Namespace) -> None:
    """One pair of server and agent for everything that is timed with so many workers."""
    for workers in given.workers:
        with a_site(root / f"timed-{workers}") as site, database_of(site, given.database):
            site.start_server()
            agent = site.start_agent(**DEFAULTS, agent__max_workers=workers)
            crew = crew_of(site, agent)
            if workers == given.workers[0]:
                say(f"idle for {given.idle:g} s ...")
                idle(crew, results, duration=given.idle)
            say(f"{workers} workers ...")
            throughput(site, crew, results, tasks=given.tasks, rounds=given.rounds, workers=workers)
            if workers == given.workers[0] and given.submissions:
                say(f"{given.submissions} submissions to an idle agent ...")
                latency(site, results, submissions=given.submissions)
                say("while others wait ...")
                crowded(site, crew, results, tasks=given.crowd_tasks, waiting=given.waiting)
            agent.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 8])
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    parser.add_argument("--submissions", type=int, default=100)
    parser.add_argument("--waiting", type=int, nargs="*", default=[10, 1000, 100_000])
    parser.add_argument("--crowd-tasks", type=int, default=500)
    parser.add_argument("--idle", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    given = parser.parse_args()
    results = Results()
    results.add("machine", **machine(), database=given.database)
    with tempfile.TemporaryDirectory(prefix="remotegpu-bench-") as folder:
        root = Path(folder)
        if given.starts:
            say("start to first claim ...")
            with a_site(root / "starts") as site:
                site.start_server()
                startup(site, results, times=given.starts)
        timed(root, results, given)
        say("counting requests and commits ...")
        counted(root / "counted", results, tasks=200, database=given.database)
    results.show()
    if given.json:
        given.json.write_text(json.dumps(results.sections, indent=2) + "\n")


if __name__ == "__main__":
    main()
