"""What a task asks of a machine, what a machine has free, and whether the one fits the other.

Standard library only: agent, server and command line all import it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)B?\s*", re.ASCII | re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_FIELDS: Final = ("gpus", "gpu", "gpu_memory", "cpus", "memory")
MOST_GPUS: Final = 1024
MOST_CPUS: Final = 1_000_000
MOST_BYTES: Final = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a task asks for; nothing asked is nothing counted."""

    gpus: int = 0  # devices, its alone
    gpu: str = ""  # part of the model's name, such as "a100"; case does not matter
    gpu_memory: int = 0  # bytes that each device must have in all
    cpus: float = 0.0
    memory: int = 0  # bytes

    def __bool__(self) -> bool:
        return bool(self.gpus or self.cpus or self.memory)


NOTHING: Final = Resources()


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A GPU that may be given to a task."""

    uuid: str
    name: str
    memory: int | None = None  # bytes in all; None: not known, so no task that names a size fits


@dataclass(frozen=True, kw_only=True, slots=True)
class Free:
    """What nobody uses. None: the machine does not tell, so nothing that asks for it fits."""

    slots: int
    devices: tuple[Device, ...] = ()
    cpus: float | None = None
    memory: int | None = None  # bytes


NO_ROOM: Final = Free(slots=0)


def fitting(wanted: Resources, free: Free) -> tuple[Device, ...] | None:
    """The devices that a task would be given, the smallest that do; None if it does not fit."""
    if wanted.cpus and (free.cpus is None or wanted.cpus > free.cpus):
        return None
    if wanted.memory and (free.memory is None or wanted.memory > free.memory):
        return None
    if not wanted.gpus:
        return ()
    fit = [device for device in free.devices if suits(wanted, device)]
    if len(fit) < wanted.gpus:
        return None
    fit.sort(key=lambda device: device.memory or 0)
    return tuple(fit[: wanted.gpus])


def suits(wanted: Resources, device: Device) -> bool:
    """Whether the device is of the kind that is asked for."""
    if wanted.gpu.lower() not in device.name.lower():
        return False
    return not wanted.gpu_memory or (device.memory or 0) >= wanted.gpu_memory


def without(free: Free, wanted: Resources, devices: Sequence[Device]) -> Free:
    """What is left when a task that fits has been given its slot and its devices."""
    gone = {device.uuid for device in devices}
    return replace(
        free,
        slots=free.slots - 1,
        devices=tuple(each for each in free.devices if each.uuid not in gone)
        if gone
        else free.devices,
        cpus=free.cpus if free.cpus is None else free.cpus - wanted.cpus,
        memory=free.memory if free.memory is None else free.memory - wanted.memory,
    )


def returned(free: Free, wanted: Resources, devices: Sequence[Device]) -> Free:
    """What is free when a task has given back its slot and its devices."""
    return replace(
        free,
        slots=free.slots + 1,
        devices=(*free.devices, *devices) if devices else free.devices,
        cpus=free.cpus if free.cpus is None else free.cpus + wanted.cpus,
        memory=free.memory if free.memory is None else free.memory + wanted.memory,
    )


def kept_for(wanted: Resources, free: Free) -> Free:
    """What others may have while a task that does not fit is to get what there is of its wish."""
    kept = {each.uuid for each in [d for d in free.devices if suits(wanted, d)][: wanted.gpus]}
    return replace(
        free,
        devices=tuple(each for each in free.devices if each.uuid not in kept),
        cpus=free.cpus if free.cpus is None else max(0.0, free.cpus - wanted.cpus),
        memory=free.memory if free.memory is None else max(0, free.memory - wanted.memory),
    )


def of_slots(free: Free, slots: int) -> Free:
    return free if free.slots == slots else replace(free, slots=slots)


def read(value: Any) -> Resources:
    """From the wire's form. Raises ValueError with the field and what it takes."""
    if not isinstance(value, Mapping):
        raise ValueError('resources: an object is needed, such as {"gpus": 1}')
    if unknown := set(value) - set(_FIELDS):
        raise ValueError(
            f"resources.{min(map(str, unknown))}: no such field; there are {', '.join(_FIELDS)}"
        )
    name = value.get("gpu") or ""
    if not isinstance(name, str) or len(name) > 128:
        raise ValueError('resources.gpu: part of a model\'s name is needed, such as "a100"')
    found = Resources(
        gpus=_count(value.get("gpus")),
        gpu=name,
        gpu_memory=_bytes(value.get("gpu_memory"), "gpu_memory"),
        cpus=_cpus(value.get("cpus")),
        memory=_bytes(value.get("memory"), "memory"),
    )
    if found.gpus == 0 and (found.gpu or found.gpu_memory):
        if value.get("gpus") == 0:
            raise ValueError("resources.gpus: 0, and a kind of GPU is named; ask for 1 or more")
        return replace(found, gpus=1)
    return found


def as_json(resources: Resources) -> dict[str, Any]:
    """The wire's form, without what is not asked for; sizes in bytes."""
    return {name: value for name in _FIELDS if (value := getattr(resources, name))}


def size(value: Any) -> int:
    """Bytes, of a number or of text such as "20GiB" or "500MB". Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_BYTES:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('a size is bytes, or text such as "20GiB" or "500MB"')
    base = 1024 if match[3] or not re.search(r"b\s*$", value, re.IGNORECASE) else 1000
    found: int = math.ceil(float(match[1]) * base ** _POWERS[match[2].upper()])
    if found > MOST_BYTES:
        raise ValueError(f"a size is at most {MOST_BYTES} bytes")
    return found


def size_in_words(count: int) -> str:
    """Bytes as people write them: `20 GiB`, `1.5 MiB`, `17 bytes`."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << power:
            return f"{count / (1 << power):.4g} {unit}"
    return f"{count} bytes"


def _count(value: Any) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_GPUS:
        raise ValueError(f"resources.gpus: a whole number from 0 to {MOST_GPUS} is needed")
    return value


def _cpus(value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_CPUS:
        raise ValueError(f"resources.cpus: a number from 0 to {MOST_CPUS} is needed")
    return float(value)


def _bytes(value: Any, name: str) -> int:
    try:
        return 0 if value is None else size(value)
    except ValueError as error:
        raise ValueError(f"resources.{name}: {error}") from None
