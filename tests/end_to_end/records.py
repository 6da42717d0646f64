"""What tasks and agents leave in files: the marks of every run, and the agent's database."""

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil


class Mark(NamedTuple):
    """One line that a run wrote itself."""

    what: str  # begin, end, or what the task says
    task_id: str
    run_no: int
    rest: str


def marking(marks: Path, body: str) -> str:
    """A shell text that marks its begin, runs `body`, marks its end with the code, and exits so.

    Each mark is one write to a file opened to append, so none of them mixes with another.
    """
    mark = "$REMOTEGPU_TASK_ID $REMOTEGPU_RUN_NO"
    return (
        f'echo "begin {mark}" >> {marks}\n(\n{body}\n)\ncode=$?\n'
        f'echo "end {mark} $code" >> {marks}\nexit $code'
    )


def marks_in(path: Path) -> list[Mark]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        what, task_id, run_no, *rest = line.split(" ", 3)
        found.append(Mark(what, task_id, int(run_no), "".join(rest)))
    return found


class AgentFile:
    """The agent's database, read from outside as a person with sqlite3 would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(statement, values)]

    def task(self, task_id: str) -> dict[str, Any]:
        found = self.rows("SELECT * FROM tasks WHERE task_id = ?", task_id)
        assert len(found) == 1, f"the agent has {len(found)} rows of task {task_id}"
        return found[0]

    def status(self, task_id: str) -> str:
        """Of its last attempt; "" where it is unknown."""
        found = self.rows("SELECT status FROM tasks WHERE task_id = ?", task_id)
        return str(found[-1]["status"]) if found else ""

    def earlier_runs(self, task_id: str) -> list[dict[str, Any]]:
        """Runs that ended and were followed by another."""
        return self.rows("SELECT * FROM runs WHERE task_id = ? ORDER BY run_no", task_id)

    def unsent(self, task_id: str | None = None) -> list[str]:
        """Kinds of the events that still wait to be told, in their order."""
        found = self.rows("SELECT kind, task_id FROM outbox ORDER BY seq")
        return [row["kind"] for row in found if task_id in (None, row["task_id"])]

    def dead_letters(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM dead_letters")


def marked_processes(text: str) -> list[int]:
    """Processes whose environment or command line holds this text, ours excepted."""
    return [pid for pid, told in _processes() if text.encode() in told]


def eldest(pids: Sequence[int]) -> list[int]:
    """Without those whose parent is one of them: a process that is about to become another one
    bears its parent's name for a moment.
    """
    return [pid for pid in pids if _parent(pid) not in pids]


def _parent(pid: int) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).ppid()
    return 0


def processes_of(task_id: str) -> list[int]:
    """Every process of this task's runs: they all inherit the task's id."""
    return marked_processes(f"REMOTEGPU_TASK_ID={task_id}")


def _processes() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            told = (entry / "environ").read_bytes() + b"\0" + (entry / "cmdline").read_bytes()
            yield int(entry.name), told


def peak_memory(pid: int) -> int:
    """Most bytes that a process ever had in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"the kernel does not tell the memory of process {pid}")


def end_everything_marked(text: str) -> None:
    for pid in marked_processes(text):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
