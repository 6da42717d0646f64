"""What the bench looks at: the three processes and their cost, and the table of figures."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.end_to_end.site import Process, Site


@dataclass
class Results:
    """What was measured, by section and name."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, section: str, **figures: Any) -> None:
        self.sections.setdefault(section, {}).update(figures)

    def show(self) -> None:
        for section, figures in self.sections.items():
            print(f"\n{section}")
            for name, value in figures.items():
                shown = f"{value:,.3g}" if isinstance(value, float) else str(value)
                print(f"  {name.replace('_', ' '):<46} {shown:>14}")


@dataclass(frozen=True)
class Crew:
    """The three processes whose cost is told."""

    agent: psutil.Process
    supervisor: psutil.Process
    server: psutil.Process

    def items(self) -> Iterator[tuple[str, psutil.Process]]:
        yield from (("agent", self.agent), ("supervisor", self.supervisor))
        yield "server", self.server

    def cpu(self) -> dict[str, float]:
        """Seconds that each has spent itself; its children are not among them."""
        spent = {}
        for name, process in self.items():
            times = process.cpu_times()
            spent[name] = times.user + times.system
        return spent


@contextlib.contextmanager
def halted(*processes: psutil.Process) -> Iterator[None]:
    """They stand still, so that a queue can be filled before the clock runs."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def crew_of(site: Site, agent: Process) -> Crew:
    """Runs a first task, so that the supervisor is there and has made itself at home."""
    assert site.server is not None
    site.wait(site.submit("/bin/true", exec=True))
    (supervisor,) = site.supervisors()
    pids = (agent.popen.pid, supervisor, site.server.popen.pid)
    return Crew(*(psutil.Process(pid) for pid in pids))


def wakeups(crew: Crew) -> dict[str, int]:
    """Voluntary context switches so far, of all threads."""
    counts = {}
    for name, process in crew.items():
        tasks = Path(f"/proc/{process.pid}/task").glob("*/status")
        lines = [line for task in tasks for line in task.read_text().splitlines()]
        found = [line.split()[1] for line in lines if line.startswith("voluntary_ctxt_switches")]
        counts[name] = sum(map(int, found))
    return counts


def machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "load_before": round(os.getloadavg()[0], 2),
    }
