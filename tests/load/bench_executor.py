"""The subprocess executor alone against xargs, by hand: `python tests/load/bench_executor.py [N]`.

N × /bin/true with 2, 4 and 8 in flight, each beside `xargs -P` in the same minute: the ratio of
both, CPU of agent and supervisor a run (the figure to trust on a machine that others use), wakeups
of the supervisor a run, and its memory. The agent's figure holds the making of each launch.
"""

import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import structlog

from agent_core import Instant, Key, Launch, PluginContext
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


async def one_round(
    executor: SubprocessExecutor, directory: str, number: int, in_flight: int, pid: int
) -> str:
    clock = SystemClock()

    async def slot() -> None:
        for _ in range(number // in_flight):
            execution = await executor.execute(launch(directory, clock))  # type: ignore[misc]
            assert (await execution.wait()).success
            await execution.forget()

    woken = wakeups(pid)
    supervisor, ours = processor(pid), resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(in_flight)))
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


async def main(number: int) -> None:
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
    for _ in range(ROUNDS):
        for in_flight in IN_FLIGHT:
            print(await one_round(executor, directory, number, in_flight, pid))
    status = Path(f"/proc/{pid}/status").read_text()
    print("supervisor", " ".join(status.partition("VmRSS:")[2].split()[:2]))
    executor.close()
    os.kill(pid, 9)
    shutil.rmtree(directory)
    shutil.rmtree(runtime)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1500))
