"""What an agent told of its machine: kept with its row as text, read back as an offer."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from agent_control_plane import schemas
from agent_control_plane.needs import Offer
from agent_core.api.resources import MOST_BYTES, Device, Free, Resources, read
from agent_core.api.wire import Json

EVERYTHING: Final = Free(slots=0, cpus=math.inf, memory=MOST_BYTES)  # of what is not told


def has(call: schemas.Register) -> str:
    """What a register said of the machine; "" if nothing."""
    told = {
        "labels": call.labels,
        "executors": call.executors,
        "gpus": [gpu.model_dump() for gpu in call.gpus or ()],
        "cpus": call.cpus,
        "memory": call.memory,
    }
    return _text(told)


def free(claim: schemas.Free | None) -> str:
    """What a claim said is free; "" if nothing."""
    return "" if claim is None else _text(claim.model_dump())


def _text(told: Mapping[str, Json]) -> str:
    found = {name: value for name, value in told.items() if value not in (None, {}, [])}
    return json.dumps(found, sort_keys=True, allow_nan=False) if found else ""


def offer(machine_id: str, told: str, said_free: str, limit: int = 0) -> Offer:
    """The offer of an agent whose row says `told`, and whose claim `said_free`."""
    labels, executors, whole = _machine(told)
    if not said_free:
        return Offer(
            machine_id=machine_id, labels=labels, executors=executors, limit=limit, whole=whole
        )
    now, urgent = _free(said_free)
    return Offer(
        machine_id=machine_id,
        labels=labels,
        executors=executors,
        limit=limit,
        free=now,
        whole=whole,
        urgent_at_most=urgent,
    )


@lru_cache(maxsize=4096)
def _machine(told: str) -> tuple[Mapping[str, str], tuple[str, ...], Free]:
    found = json.loads(told) if told else {}
    whole = Free(
        slots=0,
        devices=devices(found.get("gpus", ())),
        cpus=found.get("cpus", EVERYTHING.cpus),
        memory=found.get("memory", EVERYTHING.memory),
    )
    return found.get("labels", {}), tuple(found.get("executors", ())), whole


@lru_cache(maxsize=4096)
def _free(said: str) -> tuple[Free, int | None]:
    found = json.loads(said)
    resources = found.get("resources") or {}
    now = Free(
        slots=found.get("slots", 0),
        devices=devices(resources.get("gpus") or ()),
        cpus=resources.get("cpus"),
        memory=resources.get("memory"),
    )
    return now, found.get("urgent_at_most")


@lru_cache(maxsize=4096)
def resources(asked: str) -> Resources:
    """What a task's row says that it asks for."""
    return read(json.loads(asked))


def devices(gpus: Sequence[Mapping[str, Any]]) -> tuple[Device, ...]:
    """By their place: which ones a task gets is its agent's choice."""
    return tuple(
        Device(uuid=str(place), name=gpu.get("name") or "", memory=gpu.get("memory"))
        for place, gpu in enumerate(gpus)
    )
