"""Output through FIFOs: no line lost, disk and memory bounded, whatever is printed."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_core.testing.executor import appears, begin, end, make_launch
from agent_core_plugins.subprocess_executor import SubprocessExecutor
from agent_core_plugins.subprocess_executor.supervisor import sink
from tests.agent_core_plugins.subprocess_executor.conftest import supervisors

Make = Callable[..., SubprocessExecutor]
CAP = 64 * 1024


async def sh(executor: SubprocessExecutor, directory: Path, text: str) -> tuple[bytes, int | None]:
    outcome = await end(await begin(executor, make_launch(directory, "/bin/sh", "-c", text)))
    return outcome.stdout, outcome.dropped_stdout


def resident(pid: int) -> int:
    """Bytes, the most that it ever was."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


async def test_a_task_that_opens_its_output_again_loses_no_line(make: Make, tmp_path: Path) -> None:
    text = (
        "echo one; echo two >/dev/stdout; echo three | tee /dev/stderr; echo four >/proc/self/fd/1;"
        " echo five >>/dev/stdout"
    )
    out, dropped = await sh(make(), tmp_path, text)
    assert (out, dropped) == (b"one\ntwo\nthree\nfour\nfive\n", 0)


async def test_a_gigabyte_keeps_memory_flat_and_the_disk_at_the_cap(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    executor = make(max_output_size=CAP)
    launch = make_launch(
        tmp_path, "/bin/sh", "-c", "echo begin; head -c 1000000000 /dev/zero; echo end; read x <go"
    )
    os.mkfifo(Path(launch.scratch) / "go")
    execution = await begin(executor, launch)
    while await execution.tail("stdout", 4) != b"end\n":
        await asyncio.sleep(0.02)
    (kept,) = (tmp_path / "state" / "output").iterdir()
    assert kept.stat().st_size <= CAP + sink.HEADER.size
    (supervisor,) = supervisors(runtime)
    assert resident(supervisor) < 20 * 2**20
    await asyncio.to_thread((Path(launch.scratch) / "go").write_text, "\n")
    outcome = await end(execution)
    assert outcome.stdout.startswith(b"begin\n")
    assert outcome.stdout.endswith(b"end\n")
    assert outcome.dropped_stdout == 1000000010 - CAP
    assert not kept.exists()


async def test_both_streams_at_once_do_not_hinder_each_other(make: Make, tmp_path: Path) -> None:
    text = "seq 1 100000 & seq 1 100000 >&2; wait"
    executor = make(max_output_size=2**20)
    outcome = await end(await begin(executor, make_launch(tmp_path, "/bin/sh", "-c", text)))
    whole = "".join(f"{number}\n" for number in range(1, 100001)).encode()
    assert outcome.stdout == outcome.stderr == whole


async def test_what_was_printed_just_before_the_end_is_there(make: Make, tmp_path: Path) -> None:
    executor = make()
    for number in range(50):
        out, _ = await sh(executor, tmp_path, f"head -c {number * 1300} /dev/zero; echo {number}")
        assert len(out) == number * 1300 + len(f"{number}\n")


async def test_output_of_a_task_that_is_killed_is_kept(make: Make, tmp_path: Path) -> None:
    text = "echo before; echo >began; exec sleep 1000"
    launch = make_launch(tmp_path, "/bin/sh", "-c", text)
    execution = await begin(make(), launch)
    await appears(Path(launch.scratch) / "began")
    await execution.signal(signal.SIGKILL)
    assert (await end(execution)).stdout == b"before\n"


async def test_a_task_without_output_makes_no_file(make: Make, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "/bin/true")
    execution = await begin(make(), launch)
    await execution.wait()
    assert not list((tmp_path / "state" / "output").iterdir())
    await execution.forget()


async def test_a_directory_that_takes_no_file_costs_output_and_not_the_run(
    make: Make, tmp_path: Path
) -> None:
    executor = make()
    (tmp_path / "state" / "output").rmdir()
    out, dropped = await sh(executor, tmp_path, "echo lost; exit 0")
    assert out == b"\n...[truncated, 5 bytes dropped]\n"
    assert dropped == 5


async def test_whoever_follows_output_that_no_file_took_comes_to_its_end(
    make: Make, tmp_path: Path
) -> None:
    executor = make()
    (tmp_path / "state" / "output").rmdir()
    execution = await begin(executor, make_launch(tmp_path, "/bin/sh", "-c", "echo lost"))
    await execution.wait()
    assert await execution.output("stdout", 0, 100) == (5, b"", 5)
    await execution.forget()


async def test_nothing_is_left_of_a_run_that_was_forgotten(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    executor = make()
    await sh(executor, tmp_path, "echo out; echo err >&2")
    assert not list((tmp_path / "state" / "output").iterdir())
    assert [list((place / "f").iterdir()) for place in runtime.iterdir()] == [[]]


@pytest.mark.parametrize("size", [1023, 16 * 1024 * 1024 + 1])
def test_a_cap_beyond_its_bounds_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="max_output_size"):
        SubprocessExecutor.Settings(max_output_size=size)
