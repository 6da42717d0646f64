"""kill -9 at random, again and again, while tasks run, end and wait; then every task is checked.

    python -m tests.load.chaos --rounds 20 --seed 1

Each round is a site of its own with a seed of its own, so a round that fails can be had again.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.end_to_end.records import marked_processes
from tests.end_to_end.site import Process, Site, site_in, wait_for
from tests.load.checker import KINDS, Expected, check

CALLS = ("register", "tasks/claim", "tasks/claim", "events", "events")
LIFE = 4.0  # seconds after which an agent is killed whose moment did not come
AT_A_TIME = 25  # tasks submitted between two lives
PATIENCE = 40  # lives in a row in which no task may come to its end


class Moment:
    """When an agent is to be killed: some time after its start, or around one of its calls."""

    def __init__(self, rng: random.Random) -> None:
        self.call = rng.choice(("", "", "", *CALLS))
        self.when = rng.choice(("asked", "answered"))
        self.nth = rng.choice((1, 1, 2, 3, 8))
        # Starting takes about as long as the shorter of these; so many die while they recover.
        self.delay = rng.uniform(0.2, 2.5) if not self.call else rng.choice((0, 0, 0.003, 0.02))
        # Some are asked to leave first, and are killed while they do.
        self.leaves = rng.uniform(0, 0.4) if rng.random() < 0.2 else None

    @property
    def name(self) -> str:
        return f"{self.when} {self.call}" if self.call else "at a time"


class Doom:
    """Kills one agent at its moment."""

    def __init__(self, moment: Moment, agent: Process) -> None:
        self._moment = moment
        self._process = os.pidfd_open(agent.popen.pid)  # it never means another process
        self._seen = 0
        self._timers: list[threading.Timer] = []
        self._lock = threading.Lock()  # its moment may come from the relay's thread
        self._over = False
        if not moment.call:
            self._strike()

    def __enter__(self) -> "Doom":
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        with self._lock:
            self._over = True
            os.close(self._process)

    def watch(self, when: str, call: str) -> None:
        """For the relay: what passes, before it is passed on."""
        moment = self._moment
        if moment.call and when == moment.when and call.endswith(moment.call):
            self._seen += 1
            if self._seen == moment.nth:
                self._strike()

    def _strike(self) -> None:
        moment = self._moment
        if moment.leaves is not None:
            self._send(moment.delay, signal.SIGTERM)
        self._send(moment.delay + (moment.leaves or 0), signal.SIGKILL)

    def _send(self, delay: float, signum: int) -> None:
        def send() -> None:
            with self._lock, contextlib.suppress(ProcessLookupError):
                if not self._over:
                    signal.pidfd_send_signal(self._process, signum)

        if delay:
            self._timers.append(threading.Timer(delay, send))
            self._timers[-1].start()
        else:
            send()


class Chaos:
    """One round on one site."""

    def __init__(self, site: Site, seed: int, *, server_too: bool) -> None:
        self.site = site
        self.kills: Counter[str] = Counter()
        self.expected: list[Expected] = []
        self._rng = random.Random(seed)
        self._server_too = server_too
        self._relay = site.relay()
        self._settings = {
            "agent__max_workers": 6,
            "server_client__url": self._relay.url,
            "server_client__renew_interval": 0.5,
            "subprocess_executor__grace": 1,
        }

    def run(self, tasks: int) -> list[str]:
        """What is wrong after all of them have ended; empty if nothing is."""
        site = self.site
        site.start_server()
        while len(self.expected) < tasks:
            self._submit(min(AT_A_TIME, tasks - len(self.expected)))
            self._live_and_die()
        fewest, in_vain = tasks + 1, 0
        while unended := self._unended():
            fewest, in_vain = (unended, 0) if unended < fewest else (fewest, in_vain + 1)
            assert in_vain < PATIENCE, f"{unended} tasks do not end:\n{self._story()}"
            self._live_and_die()
        agent = site.start_agent(**self._settings)
        wait_for(lambda: "ready" in agent.text, "the last agent is up")
        wait_for(lambda: site.file().unsent() == [], "everything is told")
        ended = {each.task_id: site.task(each.task_id) for each in self.expected}
        wrong = check(self.expected, ended, site.marks())
        wrong += [f"a dead letter: {letter}" for letter in site.file().dead_letters()]
        wrong += [
            f"process {pid} is left"
            for pid in marked_processes("REMOTEGPU_TASK_ID=")
            if str(site.root).encode() in _environment(pid)
        ]
        if agent.stop() != 0:
            wrong.append(f"the last agent ended badly:\n{agent.text[-2000:]}")
        return wrong

    def _submit(self, count: int) -> None:
        for _ in range(count):
            number = len(self.expected)
            rare = number % 25 == 24
            kind = KINDS[4] if rare else self._rng.choice((*KINDS[:4], KINDS[0]))
            body = kind.body.format(number=number, nap=round(self._rng.uniform(0, 0.5), 3))
            task_id = self.site.submit_marked(body, **(kind.fields or {}))
            self.expected.append(Expected(task_id=task_id, number=number, kind=kind))

    def _unended(self) -> int:
        """How many tasks are not final (200 stands for more)."""
        query = "status=pending&status=assigned&status=running&limit=200"
        _, answer = self.site.call("GET", f"/api/v1/tasks?{query}")
        return len(answer["data"]["tasks"])

    def _story(self) -> str:
        return self.site.agents["one"].text[-4000:]

    def _live_and_die(self) -> None:
        """One life of the agent."""
        moment = Moment(self._rng)
        ahead = self._rng.choice((0, 2, 8))  # starts stored ahead: a life may find those of another
        agent = self.site.start_agent(**self._settings, agent__arm_ahead=ahead)
        with Doom(moment, agent) as doom:
            self._relay.watch = doom.watch
            if self._server_too and self._rng.random() < 0.2:
                self._kill_the_server()
            end = time.monotonic() + LIFE
            while agent.alive and time.monotonic() < end:
                time.sleep(0.01)
            self._relay.watch = None
            self.kills[moment.name if not agent.alive else "old age"] += 1
            agent.kill()
        code = agent.popen.returncode
        left = moment.leaves is not None and code in (0, -signal.SIGTERM)
        assert left or code == -signal.SIGKILL, f"ended by itself with {code}:\n{agent.text}"

    def _kill_the_server(self) -> None:
        assert self.site.server is not None
        time.sleep(self._rng.uniform(0, 1.5))
        self.site.server.kill()
        self.kills["server"] += 1
        time.sleep(self._rng.uniform(0, 1))
        self.site.start_server()


def _environment(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=100, help="in a round")
    parser.add_argument("--agent-only", action="store_true", help="leave the server alone")
    options = parser.parse_args()
    failed = 0
    for seed in range(options.seed, options.seed + options.rounds):
        began = time.monotonic()
        root = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        output = root / "logs"
        with output.open("w") as logs, contextlib.redirect_stdout(logs), site_in(root) as site:
            chaos = Chaos(site, seed, server_too=not options.agent_only)
            try:
                wrong = chaos.run(options.tasks)
            finally:
                site.show()
        took = time.monotonic() - began
        kills = ", ".join(f"{count} {name}" for name, count in sorted(chaos.kills.items()))
        print(f"seed {seed}: {options.tasks} tasks, {took:.0f} s, killed {kills}", flush=True)
        for words in wrong:
            print(f"  {words}", flush=True)
        if wrong:
            failed += 1
            print(f"  kept in {root}", flush=True)
    print(f"{failed} of {options.rounds} rounds failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
