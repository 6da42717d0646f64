"""Why a task does not run on one machine: a code, and a sentence for whoever waits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agent_control_plane.needs import Needs, Offer
from agent_core.api.resources import (
    Device,
    Free,
    Resources,
    fitting,
    size_in_words,
    suits,
    without,
)

SILENT_AFTER: Final = 180.0  # seconds without a word of an agent
_HOLDERS_NAMED: Final = 4


class Reason(StrEnum):
    """The most hopeful first: in this order they are told."""

    # Of the task, whatever the machine.
    FINAL = "final"
    RUNNING = "running"
    ASSIGNED = "assigned"
    SUSPENDED = "suspended"
    PREEMPTED = "preempted"
    CANCEL_REQUESTED = "cancel_requested"
    UNREACHABLE = "unreachable"
    DEPENDENCY = "dependency"
    RETRY_DUE = "retry_due"
    NO_MACHINE = "no_machine"
    UNKNOWN_MACHINE = "unknown_machine"
    # Of one machine.
    SOON = "soon"
    BEHIND = "behind"
    NO_SLOT = "no_slot"
    GPUS_HELD = "gpus_held"
    CPUS_HELD = "cpus_held"
    MEMORY_HELD = "memory_held"
    SILENT = "silent"
    UNTOLD = "untold"
    LABEL = "label"
    EXECUTOR = "executor"
    TOO_FEW_GPUS = "too_few_gpus"
    NO_SUCH_GPU = "no_such_gpu"
    TOO_FEW_CPUS = "too_few_cpus"
    TOO_LITTLE_MEMORY = "too_little_memory"


RANK: Final = {reason: place for place, reason in enumerate(Reason)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A task that an agent holds."""

    task_id: str
    since: float  # seconds since the epoch
    resources: Resources


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """An agent as the server knows it."""

    offer: Offer  # of its register, and of its last claim
    slots: int
    last_seen_at: float
    untold: bool  # its last claim did not say what is free
    holders: Sequence[Holder]


def of_machine(
    needed: Needs, machine: Machine, ahead: Callable[[], int], now: float
) -> tuple[Reason, str]:
    """`ahead` counts the tasks that would be given to it before."""
    if now - machine.last_seen_at >= SILENT_AFTER:
        return Reason.SILENT, f"silent for {ago(now - machine.last_seen_at)}"
    return (
        _kind(needed, machine)
        or _size(needed.resources, machine)
        or _room(needed.resources, machine, now)
        or _turn(ahead())
    )


def _kind(needed: Needs, machine: Machine) -> tuple[Reason, str] | None:
    offer = machine.offer
    for name, value in needed.labels.items():
        if (there := offer.labels.get(name)) != value:
            what = "has no such label" if there is None else f"is {name}={there}"
            return Reason.LABEL, f"label {name}={value} is needed; this machine {what}"
    if needed.executor and needed.executor not in offer.executors:
        there = ", ".join(offer.executors[:10]) or "none that it tells of"
        return Reason.EXECUTOR, f"executor {needed.executor} is needed; there is {there}"
    return None


def _size(wanted: Resources, machine: Machine) -> tuple[Reason, str] | None:
    """What the machine never has, however idle it is."""
    if wanted and machine.untold:
        return Reason.UNTOLD, "its agent does not tell what is free, so it gets no such task"
    whole = machine.offer.whole or Free(slots=0)
    kind = [device for device in whole.devices if suits(wanted, device)]
    if wanted.gpus and not kind:
        return Reason.NO_SUCH_GPU, f"{_gpus(wanted)} needed; this machine has {_named(whole)}"
    if len(kind) < wanted.gpus:
        return Reason.TOO_FEW_GPUS, f"{_gpus(wanted)} needed; this machine has {len(kind)} in all"
    if whole.cpus is not None and wanted.cpus > whole.cpus:
        words = f"{wanted.cpus:g} cpus needed; this machine has {whole.cpus:g} in all"
        return Reason.TOO_FEW_CPUS, words
    if whole.memory is not None and wanted.memory > whole.memory:
        needed, there = size_in_words(wanted.memory), size_in_words(whole.memory)
        words = f"{needed} of memory needed; this machine has {there}"
        return Reason.TOO_LITTLE_MEMORY, f"{words} in all"
    return None


def _room(wanted: Resources, machine: Machine, now: float) -> tuple[Reason, str] | None:
    free = left(machine)
    if wanted.gpus:
        kind = [device for device in free.devices if suits(wanted, device)]
        if len(kind) < wanted.gpus:
            users = [each for each in machine.holders if each.resources.gpus]
            words = f"{_gpus(wanted)} needed, {len(kind)} free"
            return Reason.GPUS_HELD, words + _held_by(users, now)
    if wanted.cpus and wanted.cpus > (free.cpus or 0):
        users = [each for each in machine.holders if each.resources.cpus]
        words = f"{wanted.cpus:g} cpus needed, {free.cpus or 0:g} free"
        return Reason.CPUS_HELD, words + _held_by(users, now)
    if wanted.memory and wanted.memory > (free.memory or 0):
        users = [each for each in machine.holders if each.resources.memory]
        needed, spare = size_in_words(wanted.memory), size_in_words(free.memory or 0)
        words = f"{needed} of memory needed, {spare} free"
        return Reason.MEMORY_HELD, words + _held_by(users, now)
    if free.slots <= 0:
        return Reason.NO_SLOT, "no free slot" + _held_by(machine.holders, now)
    return None


def _turn(ahead: int) -> tuple[Reason, str]:
    if ahead:
        return Reason.BEHIND, f"behind {ahead} more urgent task{'s' if ahead > 1 else ''}"
    return Reason.SOON, "there is room for it; its agent takes it when it next asks"


def left(machine: Machine) -> Free:
    """What is free: as its last claim said, less what it was granted since."""
    offer = machine.offer
    whole = offer.whole or Free(slots=0)
    known = Free(slots=machine.slots, devices=whole.devices, cpus=whole.cpus, memory=whole.memory)
    for holder in machine.holders:
        given = fitting(holder.resources, known)
        known = without(known, holder.resources, given or ())
    told = offer.free
    if told is None:
        return known
    return Free(
        slots=min(known.slots, told.slots),
        devices=_fewer(known.devices, told.devices),
        cpus=_less(known.cpus, told.cpus),
        memory=None if told.memory is None else min(known.memory or 0, told.memory),
    )


def _fewer(known: Sequence[Device], told: Sequence[Device]) -> tuple[Device, ...]:
    """Those that both call free, by kind: which one of a kind is free does not matter here."""
    there = [(device.name, device.memory) for device in known]
    both = []
    for device in told:
        if (device.name, device.memory) in there:
            there.remove((device.name, device.memory))
            both.append(device)
    return tuple(both)


def _less(known: float | None, told: float | None) -> float | None:
    return told if known is None or told is None else min(known, told)


def _held_by(holders: Iterable[Holder], now: float) -> str:
    named = sorted(holders, key=lambda holder: (holder.since, holder.task_id))
    if not named:
        return ""
    words = [f"{short(one.task_id)} for {ago(now - one.since)}" for one in named[:_HOLDERS_NAMED]]
    if len(named) > _HOLDERS_NAMED:
        words.append(f"and {len(named) - _HOLDERS_NAMED} more")
    return ": held by " + ", ".join(words)


def _gpus(wanted: Resources) -> str:
    kind = f" {wanted.gpu}" if wanted.gpu else ""
    of = f" of {size_in_words(wanted.gpu_memory)}" if wanted.gpu_memory else ""
    return f"{wanted.gpus}{kind} GPU{'s' if wanted.gpus > 1 else ''}{of}"


def _named(whole: Free) -> str:
    counts: dict[str, int] = {}
    for device in whole.devices:
        words = (
            device.name
            if device.memory is None
            else f"{device.name}, {size_in_words(device.memory)}"
        )
        counts[words] = counts.get(words, 0) + 1
    return "; ".join(f"{count} × {name}" for name, count in list(counts.items())[:5]) or "none"


def ago(seconds: float) -> str:
    """How long, in the largest unit that says something: 40 s, 5 min, 2 h, 3 d."""
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (seconds >= length and unit != "d"):
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def short(task_id: str) -> str:
    """The beginning of a UUID; another id as it is, if it is short."""
    is_uuid = len(task_id) == 36 and task_id.count("-") == 4
    return task_id[:8] if is_uuid else task_id[:40]
