"""The subprocess executor alone against xargs, by hand.

    python tests/load/bench_executor.py [RUNS] [AHEAD]

N × /bin/true with 2, 4 and 8 in flight, each beside `xargs -P` in the same minute: the ratio of
both, CPU of agent and supervisor a run (the figure to trust on a machine that others use), wakeups
of the supervisor a run, and its memory. The agent's figure holds the making of each launch. AHEAD
starts are handed over ahead of their slots, and each begins when a run before it has ended.
"""

import asyncio
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path

import psutil
import structlog

from agent_core import Ahead, Instant, Key, Launch, PluginContext
from agent_core.clock import SystemClock
from agent_core_plugins.subprocess_executor import SubprocessExecutor

IN_FLIGHT = (2, 4, 8)
ROUNDS = 2


def launch(directory: str, clock: SystemClock) -> Launch:
    start_id = uuid.uuid4().hex
    return Launch(
        start_id=start_id,
        key=Key(start_id, ""),
        run_no=1,
        argv=("/bin/true",),
        text="/bin/true",
        env={"PATH": "/usr/bin:/bin"},
        cwd=directory,
        scratch=directory,
        progress=f"{directory}/progress",
        stored_at=Instant.now(clock),
    )


def processor(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def wakeups(pid: int) -> int:
    return psutil.Process(pid).num_ctx_switches().voluntary


def xargs(number: int, in_flight: int) -> tuple[float, float]:
    """Runs a second, and seconds of CPU a run: what this machine's minute makes of one."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    names = b"x\n" * number
    subprocess.run(["xargs", f"-P{in_flight}", "-n1", "/bin/true"], input=names, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return number / (time.perf_counter() - begin), spent / number


class Line:
    """Some slots and the starts that wait for them, as the core would treat them."""

    def __init__(self, executor: SubprocessExecutor, directory: str, ahead: int) -> None:
        self._executor = executor
        self._directory = directory
        self._clock = SystemClock()
        self._ahead = ahead
        self._waiting: list[Ahead] = []  # handed over
        self._left = self._free = self._runs = 0
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, number: int, in_flight: int) -> None:
        self._left, self._free, self._runs = number, in_flight, number
        self._done = self._loop.create_future()
        self._fill()
        await self._done

    def _next(self) -> Ahead:
        self._left -= 1
        start = self._executor.execute(launch(self._directory, self._clock))
        assert isinstance(start, Ahead)
        return start

    def _fill(self) -> None:
        self._looking = None
        while self._free and (self._waiting or self._left):
            self._begins(self._waiting[0] if self._waiting else self._next())
        if len(self._waiting) <= self._ahead // 2:
            while self._left and len(self._waiting) < self._ahead:
                self._waiting.append(start := self._next())
                start.hand_over(math.inf, partial(self._begins, start))

    def _begins(self, start: Ahead) -> None:
        if start in self._waiting:
            self._waiting.remove(start)
        self._free -= 1
        task = self._loop.create_task(self._follow(start))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, start: Ahead) -> None:
        execution = await start
        assert (await execution.outcome()).success
        self._free += 1
        if self._looking is None:
            self._looking = self._loop.call_soon(self._fill)
        await execution.forget()
        self._runs -= 1
        if not self._runs:
            self._done.set_result(None)


async def one_round(line: Line, number: int, in_flight: int, pid: int) -> str:
    woken = wakeups(pid)
    supervisor, ours = processor(pid), resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    await line.run(number, in_flight)
    rate = number / (time.perf_counter() - begin)
    used = resource.getrusage(resource.RUSAGE_SELF)
    agent = used.ru_utime + used.ru_stime - ours.ru_utime - ours.ru_stime
    supervisor = processor(pid) - supervisor
    woken = wakeups(pid) - woken
    beside, cost = await asyncio.to_thread(xargs, number, in_flight)
    return (
        f"{in_flight} in flight: {rate / beside:.2f} × xargs ({rate:.0f} and {beside:.0f} a"
        f" second, which spends {cost * 1000:.2f} ms a run),"
        f" agent {agent / number * 1000:.3f} ms,"
        f" supervisor {supervisor / number * 1000:.3f} ms and {woken / number:.1f} wakeups a run"
    )


async def main(number: int, ahead: int) -> None:
    directory = tempfile.mkdtemp()
    runtime = tempfile.mkdtemp(prefix="rg-", dir="/dev/shm")
    (Path(directory) / "state").mkdir()
    context = PluginContext(
        agent_id="bench",
        machine_id="machine",
        state_dir=Path(directory) / "state",
        runtime_dir=Path(runtime),
        max_workers=max(IN_FLIGHT),
        clock=SystemClock(),
        log=structlog.get_logger(),
    )
    executor = SubprocessExecutor(SubprocessExecutor.Settings(), context)
    warm = await executor.execute(launch(directory, SystemClock()))  # type: ignore[misc]
    await warm.wait()
    pid = executor.supervisor_pid
    assert pid is not None
    line = Line(executor, directory, ahead)
    for _ in range(ROUNDS):
        for in_flight in IN_FLIGHT:
            print(await one_round(line, number, in_flight, pid))
    status = Path(f"/proc/{pid}/status").read_text()
    print("supervisor", " ".join(status.partition("VmRSS:")[2].split()[:2]))
    executor.close()
    os.kill(pid, 9)
    shutil.rmtree(directory)
    shutil.rmtree(runtime)


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    asyncio.run(main(given[0] if given else 1500, given[1] if len(given) > 1 else 0))
