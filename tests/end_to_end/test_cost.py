"""What a task costs, and what nothing costs: bounds on work done, never on time passed.

The bounds are about twice what is measured on a quiet machine, since a busy one spends more; a
change that goes over one has made every task dearer: it wins that back, or says here why not.
"""

import time
from pathlib import Path
from typing import Any

from tests.end_to_end.site import Site
from tests.load.bench import counted
from tests.load.measuring import Results, crew_of, wakeups
from tests.load.workload import DEFAULTS, run_tasks

TASKS = 300
IDLE = 5.0  # seconds that are looked at; the longer, the finer
MOST = {  # beside each, what it was when the bound was set
    "agent_cpu_ms": 2.4,  # 0.95 to 1.3
    "supervisor_cpu_ms": 0.6,  # 0.25 to 0.35
    "server_cpu_ms": 0.5,  # 0.19 to 0.25
    "requests": 0.16,  # 0.09 to 0.12
    "agent_commits": 0.7,  # 0.40 to 0.48
    "server_commits_with_submit": 1.5,  # 1.22 to 1.4, of which the submit is one
    "agent_wakeups_per_second": 2.5,  # 0.8
}


def _dearer(figures: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{value:.3g}, at most {MOST[name]:g}"
        for name, value in figures.items()
        if value > MOST[name]
    }


def test_a_task_costs_each_process_no_more_cpu_than_it_may(site: Site) -> None:
    site.start_server()
    crew = crew_of(site, site.start_agent(**DEFAULTS))
    run_tasks(site, crew, 50)  # what is done once is done

    _, spent = run_tasks(site, crew, TASKS)

    figures = {f"{name}_cpu_ms": seconds * 1000 / TASKS for name, seconds in spent.items()}
    assert all(figures.values()), "none of them has done nothing"
    assert _dearer(figures) == {}


def test_a_task_among_many_makes_few_requests_and_commits(tmp_path: Path) -> None:
    results = Results()
    counted(tmp_path, results, tasks=200)
    [found] = results.sections.values()
    figures = {name: value for name, value in found.items() if name in MOST}
    assert len(figures) == 3
    assert all(figures.values())
    assert _dearer(figures) == {}


def test_an_idle_agent_hardly_ever_wakes(site: Site) -> None:
    site.start_server()
    crew = crew_of(site, site.start_agent(**DEFAULTS))
    time.sleep(3)  # what the task left is told and put in order
    before, begun = wakeups(crew), time.monotonic()
    time.sleep(IDLE)
    figures = {"agent_wakeups_per_second": (wakeups(crew)["agent"] - before["agent"])}
    figures["agent_wakeups_per_second"] /= time.monotonic() - begun
    assert _dearer(figures) == {}
