"""Plays the demo from its first process to its last: submit, show, check, and clean up."""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from agent_core.api.client import Client
from agent_core.api.wire import Json
from agent_core.cli.demo.board import Board, board
from agent_core.cli.demo.house import House
from agent_core.cli.demo.workload import PRIME_COUNT, Job, jobs, primes_found
from agent_core.cli.exits import Exit
from agent_core.cli.wait import FINAL
from agent_core.errors import Refused, RemoteGPUError, Unreachable

PACE: Final = 0.25  # seconds between two looks
LIMIT: Final = 300.0  # seconds for the whole workload
CANCEL_LIMIT: Final = 10.0  # seconds until cancelled tasks must have ended

Task = Mapping[str, Json]
Pause = Callable[[float], None]  # raises Stopped


class Stopped(Exception):
    """Somebody wants the demo to end."""


class Signals:
    """Ctrl-C and TERM: the first ends the demo gently, another one hurries the end.

    The handler only counts: an exception raised in it may come to light in a place that swallows
    exceptions, such as Python's own hooks around a fork, and Ctrl-C would do nothing.
    """

    def __init__(self) -> None:
        self._count = 0

    def take(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._caught)

    def pause(self, seconds: float) -> None:
        """Sleep. Raises Stopped if a signal came, now or before."""
        if not self._count:
            time.sleep(seconds)
        if self._count:
            raise Stopped

    def start_over(self) -> None:
        """Cleaning up begins: the next signal hurries."""
        self._count = 0

    def hurry(self) -> bool:
        return self._count > 0

    def _caught(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1


def play(*, once: bool, as_json: bool) -> int:
    """The exit code: 0 if every task ended as expected and the results are right."""
    shown = board(as_json=as_json)
    signals = Signals()
    signals.take()
    code: int = Exit.INTERRUPTED
    with suppress(Stopped), _house(signals, shown) as house:
        code = _workload(house, shown, signals.pause)
        if not once:
            _try_next(house, shown)
            while True:
                house.check()
                signals.pause(PACE)
    return code


@contextmanager
def _house(signals: Signals, shown: Board) -> Iterator[House]:
    house = House()
    try:
        shown.say(f"Starting a control plane and an agent in {house.directory} …")
        house.open(signals.pause)
        yield house
    finally:
        signals.start_over()
        try:
            _cancel_all(house, shown, signals)
        finally:
            house.close(signals.hurry)


def _workload(house: House, shown: Board, pause: Pause) -> int:
    """Submit it, show it, judge it."""
    work = jobs(house.directory)
    submitted: dict[str, Job] = {}
    with Client(house.url, house.user_token) as client:
        shown.say(
            f"{len(work)} tasks are submitted to {house.url}; an agent with 2 slots runs them."
        )
        with shown.live():
            _submit(client, [job for job in work if job.early], submitted)
            _follow(client, house, shown, list(submitted), pause, statuses={"running", *FINAL})
            _submit(client, [job for job in work if not job.early], submitted)
            ended = _follow(client, house, shown, list(submitted), pause, statuses=FINAL)
    complaints = _complaints(submitted, ended)
    for complaint in complaints:
        shown.say(f"WRONG: {complaint}")
    if not complaints:
        shown.say(
            f"All {len(ended)} tasks ended as expected; {PRIME_COUNT:,} primes below 2,000,000."
        )
    return Exit.FAILED if complaints else Exit.OK


def _submit(client: Client, work: Sequence[Job], submitted: dict[str, Job]) -> None:
    ids = {job.name: task_id for task_id, job in submitted.items()}
    for job in work:
        after = {"depends_on": [ids[name] for name in job.after]} if job.after else {}
        ids[job.name] = client.submit({**job.fields, **after})["id"]
        submitted[ids[job.name]] = job


def _follow(
    client: Client,
    house: House,
    shown: Board,
    ids: Sequence[str],
    pause: Pause,
    *,
    statuses: Collection[str],
) -> dict[str, Task]:
    """Show the tasks until each has come to one of these statuses, or the time is up."""
    there: dict[str, Task] = {}
    until = time.monotonic() + LIMIT
    while True:
        house.check()
        listed = {task["id"]: task for task in client.tasks().tasks if task["id"] in ids}
        for task_id, task in listed.items():
            if task["status"] in statuses and task_id not in there:
                there[task_id] = client.task(task_id)  # the list has no output
        now = {**listed, **there}
        shown.show([now[task_id] for task_id in ids if task_id in now])
        if len(there) == len(ids) or time.monotonic() > until:
            return there
        pause(PACE)


def _complaints(submitted: Mapping[str, Job], ended: Mapping[str, Task]) -> list[str]:
    found = []
    for task_id, job in submitted.items():
        if task_id not in ended:
            found.append(f"{job.name} has not ended after {LIMIT:.0f} s")
        elif complaint := job.complaint(ended[task_id]):
            found.append(f"{job.name} {complaint}")
    primes = primes_found(list(ended.values()))
    if primes != PRIME_COUNT:
        found.append(f"the shards found {primes} primes, and there are {PRIME_COUNT}")
    return found


def _try_next(house: House, shown: Board) -> None:
    program = Path(sys.argv[0]).resolve()
    short = "remotegpu" if shutil.which("remotegpu") == str(program) else str(program)
    shown.say(
        f"""
Try next, in another terminal:

  export REMOTEGPU_URL={house.url} REMOTEGPU_TOKEN={house.user_token}
  {short} tasks
  {short} logs $({short} submit --wait -- uname -a)
  {short} submit --follow -c 'for i in 1 2 3; do echo $i; sleep 1; done'
  {short} submit --array 1-5 -c 'echo $((REMOTEGPU_ARRAY_INDEX * REMOTEGPU_ARRAY_INDEX))'
  {short} explain $({short} submit --gpus 8 -- ./train)
  {short} --help

Logs of both programs: {house.directory}/*.log
Ctrl-C ends everything and removes it."""
    )


def _cancel_all(house: House, shown: Board, signals: Signals) -> None:
    """No task outlives the demo; if the server is gone already, the processes are ended."""
    if not house.url:
        return
    until = time.monotonic() + CANCEL_LIMIT
    told = False
    try:
        with Client(house.url, house.user_token, timeout=3.0) as client:
            while open_tasks := _unfinished(client):
                if not told:
                    told = True
                    _cancel(client, open_tasks)
                    shown.say(f"{len(open_tasks)} unfinished tasks are being cancelled …")
                if signals.hurry() or not house.agent_lives() or time.monotonic() > until:
                    return
                time.sleep(0.1)
    except (RemoteGPUError, OSError):
        return  # house.close ends what still runs


def _unfinished(client: Client) -> list[Task]:
    statuses = ("pending", "assigned", "running", "suspended", "preempted")
    return list(client.tasks(statuses=statuses).tasks)


def _cancel(client: Client, tasks: Sequence[Task]) -> None:
    for task in tasks:
        try:
            client.cancel(task["id"], reason="the demo ends")
        except (Refused, Unreachable):
            continue  # it ended meanwhile, or the server did
