"""The plugin that knows this machine: processor, memory and disk by psutil, NVIDIA GPUs by NVML."""

import asyncio
import contextlib
import ctypes
import os
import platform
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import psutil

from agent_core import Gpu, Instant, Inventory, PluginContext, hookimpl

GPU_LIMIT = 5.0  # seconds that NVML may take; a hanging driver blocks every call to it
LIBRARY = "libnvidia-ml.so.1"
GPU_AGAIN = 60.0  # seconds after a failure until the library is asked again
T = TypeVar("T")


class MachineMetrics:
    """Reads anew whenever it is asked; what cannot be read is None."""

    def __init__(
        self,
        settings: object,
        context: PluginContext,
        nvml: "Nvml | None" = None,
        gpu_limit: float = GPU_LIMIT,
    ) -> None:
        self._state_dir = context.state_dir
        self._clock = context.clock
        self._log = context.log
        self._nvml = nvml or Nvml()
        self._gpu_limit = gpu_limit
        self._gpus_failed: Instant | None = None
        self._gpus_said = ""
        _read(lambda: psutil.cpu_percent(interval=None))  # from here on there is a span to judge

    @hookimpl
    async def inventory(self) -> Inventory:
        """What this machine has, and how busy it is."""
        gpus = await self._gpus()
        memory = _read(psutil.virtual_memory)
        disk = _read(lambda: psutil.disk_usage(str(self._state_dir)))
        return Inventory(
            hostname=_read(socket.gethostname),
            os=_read(lambda: f"{platform.system()} {platform.release()}"),
            cpu_cores=_read(os.cpu_count),
            cpu_percent=_read(lambda: psutil.cpu_percent(interval=None)),
            memory_total=memory and memory.total,
            memory_used=memory and memory.total - memory.available,
            memory_percent=memory and memory.percent,
            disk_total=disk and disk.total,
            disk_used=disk and disk.used,
            disk_percent=disk and disk.percent,
            gpus=gpus,
        )

    async def _gpus(self) -> tuple[Gpu, ...]:
        """The devices; none while the library is missing, broken or hanging."""
        if self._gpus_failed and self._gpus_failed.age(self._clock) < GPU_AGAIN:
            return ()
        try:
            gpus = await in_daemon(self._nvml.gpus, self._gpu_limit)
        except TimeoutError:
            return self._without(f"the NVIDIA driver did not answer within {self._gpu_limit:g} s")
        except Exception as error:  # the binding has its own error tree, the loader another
            return self._without(f"no NVIDIA GPU can be read: {error}")
        self._gpus_failed, self._gpus_said = None, ""
        return gpus

    def _without(self, words: str) -> tuple[Gpu, ...]:
        self._gpus_failed = Instant.now(self._clock)
        if words != self._gpus_said:
            self._gpus_said = words
            self._log.info(words)
        return ()


class Nvml:
    """NVML, loaded when it is first asked and only while it opens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a call that hangs must not be joined by another
        self._library: ModuleType | None = None

    def gpus(self) -> tuple[Gpu, ...]:
        """Blocks. Raises whatever the binding raises; the library is opened anew after that."""
        if not self._lock.acquire(blocking=False):
            raise TimeoutError
        try:
            nvml = self._open()
            try:
                count = nvml.nvmlDeviceGetCount()
            except Exception:
                self._close(nvml)
                raise
            # One that fell off the bus is still counted, and must not take the others with it.
            found = [_read(partial(_gpu, nvml, index)) for index in range(count)]
            return tuple(gpu for gpu in found if gpu is not None)
        finally:
            self._lock.release()

    def _open(self) -> ModuleType:
        if self._library is None:
            ctypes.CDLL(LIBRARY)  # asked first: the binding is 6 MB that only a GPU is worth

            import pynvml  # noqa: PLC0415

            pynvml.nvmlInit()
            self._library = pynvml
        return self._library

    def _close(self, nvml: Any) -> None:
        """A driver that was loaded anew answers only who has let go of the former one."""
        self._library = None
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _read(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    used = _read(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    power = _read(lambda: nvml.nvmlDeviceGetPowerUsage(handle))  # milliwatts
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        util_percent=None if used is None else int(used.gpu),
        memory_used=None if memory is None else int(memory.used),
        memory_total=None if memory is None else int(memory.total),
        temperature=_read(
            lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        ),
        power=None if power is None else power / 1000,
    )


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _read(reading: Callable[[], T]) -> T | None:
    """A value, or None where this machine does not tell it."""
    try:
        return reading()
    except Exception:  # psutil, NVML and the kernel each have errors of their own
        return None


async def in_daemon(work: Callable[[], T], limit: float) -> T:
    """Run blocking work in a thread that nobody joins: a hanging driver must not hold up the end.

    Raises TimeoutError when the limit is over; the thread is left to itself.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # T itself may be optional
        else:
            done.set_exception(error)

    def run() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (work(), None)
        except BaseException as error:
            outcome = (None, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="nvml", daemon=True).start()
    async with asyncio.timeout(limit):
        return await done
