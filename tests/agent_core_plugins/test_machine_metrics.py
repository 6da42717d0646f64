"""What this machine has, read from the machine itself."""

import asyncio
import socket
import threading
from pathlib import Path

import psutil
import pytest
import structlog
from structlog.testing import LogCapture

from agent_core import Gpu, PluginContext
from agent_core.testing.clock import TurnedClock
from agent_core_plugins.machine_metrics import GPU_AGAIN, MachineMetrics, Nvml, in_daemon


class Watched(Nvml):
    """NVML as this machine has it, and how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def gpus(self) -> tuple[Gpu, ...]:
        self.asked += 1
        return super().gpus()


def plugin(
    state_dir: Path, nvml: Nvml | None = None
) -> tuple[MachineMetrics, TurnedClock, LogCapture]:
    clock, capture = TurnedClock(), LogCapture()
    context = PluginContext(
        agent_id="a",
        machine_id="m",
        state_dir=state_dir,
        runtime_dir=state_dir,
        max_workers=1,
        clock=clock,
        log=structlog.wrap_logger(None, processors=[capture]),
    )
    return MachineMetrics({}, context, nvml), clock, capture


async def test_the_machine_is_read_from_the_machine(tmp_path: Path) -> None:
    found = await plugin(tmp_path)[0].inventory()
    assert found.hostname == socket.gethostname()
    assert found.os is not None
    assert found.os.startswith("Linux ")
    assert found.cpu_cores == psutil.cpu_count()
    assert found.memory_total == psutil.virtual_memory().total
    assert found.memory_used is not None
    assert 0 < found.memory_used < psutil.virtual_memory().total
    assert found.disk_total == psutil.disk_usage(str(tmp_path)).total
    assert all(
        value is not None and 0 <= value <= 100
        for value in (found.cpu_percent, found.memory_percent, found.disk_percent)
    )


async def test_what_cannot_be_read_is_left_out_and_the_rest_stays(tmp_path: Path) -> None:
    found = await plugin(tmp_path / "gone")[0].inventory()
    assert (found.disk_total, found.disk_used, found.disk_percent) == (None, None, None)
    assert found.memory_total == psutil.virtual_memory().total


async def test_a_machine_without_a_gpu_is_no_error_and_is_asked_again_after_a_minute(
    tmp_path: Path,
) -> None:
    nvml = Watched()
    metrics, clock, capture = plugin(tmp_path, nvml)
    if (await metrics.inventory()).gpus:
        pytest.skip("this machine has a GPU")
    await metrics.inventory()
    assert nvml.asked == 1
    await clock.advance(GPU_AGAIN + 1)
    await metrics.inventory()
    assert nvml.asked == 2
    assert len(capture.entries) == 1  # the same words once
    assert capture.entries[0]["log_level"] == "info"


async def test_a_driver_that_hangs_holds_up_nothing_but_itself() -> None:
    released = threading.Event()
    with pytest.raises(TimeoutError):
        await in_daemon(lambda: released.wait(30), 0.01)
    released.set()
    assert await in_daemon(lambda: 5, 5) == 5


async def test_a_driver_that_hangs_is_not_asked_by_a_second_thread() -> None:
    entered, released = threading.Event(), threading.Event()

    class Hanging(Nvml):
        def _open(self) -> object:  # type: ignore[override]  # it never gets to the library
            entered.set()
            released.wait(30)
            raise OSError("the driver is gone")

    nvml = Hanging()
    first = asyncio.create_task(in_daemon(nvml.gpus, 30))
    await asyncio.to_thread(entered.wait)
    with pytest.raises(TimeoutError):
        await in_daemon(nvml.gpus, 30)
    released.set()
    with pytest.raises(OSError, match="the driver is gone"):
        await first


async def test_what_the_work_raises_arrives() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await in_daemon(fail, 5)
