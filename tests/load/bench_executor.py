"""The subprocess executor alone against xargs, by hand: `python tests/load/bench_executor.py [N]`.

N × /bin/true with two in flight, three rounds, each beside `xargs -P2` in the same minute: the
ratio of both, CPU of agent and supervisor a run, and the supervisor's memory.
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

import structlog

from agent_core import Instant, Key, Launch, PluginContext
from agent_core.clock import SystemClock
from agent_core_plugins.subprocess_executor import SubprocessExecutor

IN_FLIGHT = 2
ROUNDS = 3


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
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def xargs(number: int) -> float:
    begin = time.perf_counter()
    names = b"x\n" * number
    subprocess.run(["xargs", "-P2", "-n1", "/bin/true"], input=names, check=True)
    return number / (time.perf_counter() - begin)


async def one_round(executor: SubprocessExecutor, directory: str, number: int, pid: int) -> str:
    clock = SystemClock()

    async def slot() -> None:
        for _ in range(number // IN_FLIGHT):
            execution = await executor.execute(launch(directory, clock))  # type: ignore[misc]
            assert (await execution.wait()).success
            await execution.forget()

    supervisor, ours = processor(pid), resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(IN_FLIGHT)))
    rate = number / (time.perf_counter() - begin)
    used = resource.getrusage(resource.RUSAGE_SELF)
    agent = used.ru_utime + used.ru_stime - ours.ru_utime - ours.ru_stime
    beside = await asyncio.to_thread(xargs, number)
    return (
        f"{rate / beside:.2f} × xargs ({rate:.0f} and {beside:.0f} a second),"
        f" agent {agent / number * 1000:.2f} ms,"
        f" supervisor {(processor(pid) - supervisor) / number * 1000:.2f} ms a run"
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
        max_workers=IN_FLIGHT,
        clock=SystemClock(),
        log=structlog.get_logger(),
    )
    executor = SubprocessExecutor(SubprocessExecutor.Settings(), context)
    warm = await executor.execute(launch(directory, SystemClock()))  # type: ignore[misc]
    await warm.wait()
    pid = executor.supervisor_pid
    assert pid is not None
    for _ in range(ROUNDS):
        print(await one_round(executor, directory, number, pid))
    status = Path(f"/proc/{pid}/status").read_text()
    print("supervisor", " ".join(status.partition("VmRSS:")[2].split()[:2]))
    executor.close()
    os.kill(pid, 9)
    shutil.rmtree(directory)
    shutil.rmtree(runtime)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1500))
