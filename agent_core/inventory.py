"""What a machine has and how busy it is, as its plugins tell it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One device; None where a value cannot be read."""

    index: int
    uuid: str
    name: str
    util_percent: int | None = None
    memory_used: int | None = None  # bytes
    memory_total: int | None = None  # bytes
    temperature: int | None = None  # °C
    power: float | None = None  # watts


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What this machine has and how busy it is; None where a value cannot be read."""

    hostname: str | None = None
    os: str | None = None
    cpu_cores: int | None = None
    cpu_percent: float | None = None
    memory_total: int | None = None  # bytes
    memory_used: int | None = None
    memory_percent: float | None = None
    disk_total: int | None = None  # bytes, of the file system of the state directory
    disk_used: int | None = None
    disk_percent: float | None = None
    gpus: tuple[Gpu, ...] = ()
