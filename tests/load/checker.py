"""Judges what became of tasks by what they wrote themselves; knows nothing of the product."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.end_to_end.records import Mark


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A task whose outcome is known beforehand. `body` is a shell text, marked around."""

    name: str
    body: str
    status: str
    reason: str
    exit_code: int | None
    runs: int = 1  # how many must begin, one after the other
    ends: tuple[int, ...] = ()  # codes of the runs that come to write their end mark
    signal: str | None = None
    fields: Mapping[str, object] | None = None  # of the submit, beyond the command


KINDS = (
    Kind(
        name="succeeds",
        body="sleep {nap}; echo out of {number}",
        status="completed",
        reason="exited",
        exit_code=0,
        ends=(0,),
    ),
    Kind(
        name="fails",
        body="sleep {nap}; echo out of {number}; exit 7",
        status="failed",
        reason="exited",
        exit_code=7,
        ends=(7,),
    ),
    Kind(
        name="is killed",
        body="sleep {nap}; echo out of {number}; kill -9 $$",
        status="failed",
        reason="signal",
        exit_code=137,
        signal="SIGKILL",
    ),
    Kind(
        name="retries",
        body="sleep {nap}; echo out of {number}; [ $REMOTEGPU_RUN_NO = 2 ]",
        status="completed",
        reason="exited",
        exit_code=0,
        runs=2,
        ends=(1, 0),
        fields={"max_retries": 3, "retry_delay": 1},
    ),
    Kind(
        name="runs out of time",
        body="echo out of {number}; sleep 600",
        status="failed",
        reason="timeout",
        exit_code=124,
        fields={"timeout": 1},
    ),
)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One submitted task."""

    task_id: str
    number: int
    kind: Kind


def check(
    expected: Sequence[Expected], tasks: Mapping[str, Mapping[str, Any]], marks: Sequence[Mark]
) -> list[str]:
    """Everything that is not as it must be, in words; empty if all is well."""
    found: list[str] = []
    by_task: dict[str, list[Mark]] = {}
    for mark in marks:
        by_task.setdefault(mark.task_id, []).append(mark)
    known = {each.task_id for each in expected}
    found += [f"a mark of a task that nobody submitted: {each}" for each in by_task.keys() - known]
    for each in expected:
        told = [
            *_outcome(each, tasks[each.task_id]),
            *_runs(each.kind, by_task.get(each.task_id, [])),
        ]
        found += [f"task {each.task_id} ({each.kind.name}): {words}" for words in told]
    return found


def _outcome(each: Expected, task: Mapping[str, Any]) -> list[str]:
    kind = each.kind
    wanted = {
        "status": kind.status,
        "reason": kind.reason,
        "signal": kind.signal if kind.reason == "signal" else task["signal"],
        "exit_code": task["exit_code"] if kind.reason == "timeout" else kind.exit_code,
        "stdout": f"out of {each.number}\n",
    }
    wrong = {name: task[name] for name, value in wanted.items() if task[name] != value}
    found = [f"{name} is {value!r}, not {wanted[name]!r}" for name, value in wrong.items()]
    runs = [run["run_no"] for run in task["runs"]]
    if runs != list(range(1, kind.runs + 1)):
        found.append(f"the runs on record are {runs}")
    if len(attempts := {run["attempt_id"] for run in task["runs"]}) != 1:
        found.append(f"{len(attempts)} attempts are on record, not 1")
    return found


def _runs(kind: Kind, marks: Sequence[Mark]) -> list[str]:
    """Every run began once, after the one before it had ended."""
    wanted: list[tuple[str, int, str]] = []
    for run in range(1, kind.runs + 1):
        wanted.append(("begin", run, ""))
        if run <= len(kind.ends):
            wanted.append(("end", run, str(kind.ends[run - 1])))
    seen = [(mark.what, mark.run_no, mark.rest) for mark in marks]
    return [] if seen == wanted else [f"its marks are {seen}, not {wanted}"]
