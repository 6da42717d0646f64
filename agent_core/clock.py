"""Time, injected: wall time for people and due times, boot time for leases and timeouts."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """What the agent knows of time; tests hand in one that they turn by hand."""

    boot_id: str  # another one after a reboot

    def wall(self) -> float:
        """Seconds since the epoch. May jump."""

    def boottime(self) -> float:
        """Seconds since boot, sleep included (CLOCK_BOOTTIME). Never jumps."""

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds."""


def this_boot() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class SystemClock:
    """The machine's own time."""

    def __init__(self) -> None:
        self.boot_id = this_boot()

    def wall(self) -> float:
        return time.time()

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Instant:
    """A moment in all three measures, so that it can be compared after a restart or a reboot."""

    wall: float  # seconds since the epoch
    boottime: float  # seconds since the boot named by boot_id
    boot_id: str

    @classmethod
    def now(cls, clock: Clock) -> "Instant":
        return cls(wall=clock.wall(), boottime=clock.boottime(), boot_id=clock.boot_id)

    def age(self, clock: Clock) -> float:
        """Seconds since then; by wall time only if the machine was rebooted in between."""
        if self.boot_id == clock.boot_id:
            return clock.boottime() - self.boottime
        return clock.wall() - self.wall

    def plus(self, seconds: float) -> "Instant":
        return Instant(
            wall=self.wall + seconds, boottime=self.boottime + seconds, boot_id=self.boot_id
        )
