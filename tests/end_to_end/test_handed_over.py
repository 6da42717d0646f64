"""Starts that a supervisor has ahead of their slots, while agent and supervisor are killed."""

import os
import random
import signal
from collections import Counter

from tests.end_to_end.records import Mark, marking
from tests.end_to_end.site import Site, wait_for

TASKS = 200
# Cancelled they mark their ends, too, so that whatever runs is seen from begin to end.
FIRST = "trap : TERM\n"
BODY = 'trap "exit 3" TERM; sleep 0.0{nap}'


def most_at_once(marks: list[Mark]) -> int:
    """A begin is marked after it happened and an end before it: never more than there were."""
    running: set[tuple[str, int]] = set()
    most = 0
    for mark in marks:
        run = (mark.task_id, mark.run_no)
        (running.add if mark.what == "begin" else running.discard)(run)
        most = max(most, len(running))
    return most


def test_through_kills_of_agent_and_supervisor_no_slot_has_two_runs_and_none_runs_twice(
    site: Site,
) -> None:
    rng = random.Random(7)
    site.start_server()
    tasks = [
        site.submit(
            FIRST + marking(site.marks_file, BODY.format(nap=rng.randint(1, 3))),
            priority=rng.randint(1, 10),
        )
        for _ in range(TASKS)
    ]

    def begun(count: int) -> None:
        wait_for(lambda: len(site.marks("begin")) >= count, f"{count} runs have begun")

    def cancel_some() -> None:
        for task_id in rng.sample(tasks, 8):
            assert site.call("POST", f"/api/v1/tasks/{task_id}/cancel", {})[0] in (200, 409)

    first = site.start_agent(agent__max_workers=2)
    begun(30)
    (supervisor,) = site.supervisors()
    os.kill(supervisor, signal.SIGSTOP)
    cancel_some()  # whether those handed over began is not known for now
    os.kill(supervisor, signal.SIGCONT)
    begun(60)
    first.kill()
    few = site.marks()
    second = site.start_agent(agent__max_workers=3)
    begun(len([mark for mark in few if mark.what == "begin"]) + 30)
    cancel_some()
    (supervisor,) = site.supervisors()
    os.kill(supervisor, signal.SIGKILL)
    ended = [site.wait(task_id) for task_id in tasks]

    begins = Counter((mark.task_id, mark.run_no) for mark in site.marks("begin"))
    assert set(begins.values()) == {1}, "nothing runs twice"
    codes = {mark.task_id: mark.rest for mark in site.marks("end")}
    reasons = Counter(str(task["reason"]) for task in ended)
    for task in ended:
        runs = [run_no for task_id, run_no in begins if task_id == task["id"]]
        if task["reason"] == "exited":
            assert (runs, task["exit_code"]) == ([1], 0)
            assert codes[task["id"]] == "0"
        else:
            assert task["reason"] in ("cancelled", "lost"), task
            assert runs in ([], [1])
    assert reasons["lost"] <= 3, "no more than were under way when the supervisor was killed"
    assert reasons["exited"] >= TASKS - 16 - 3
    assert most_at_once(few) <= 2
    assert most_at_once(site.marks()) <= 3
    assert second.stop() == 0
