"""This machine in the server's words: address, GPUs, the heartbeat's metrics."""

import math
import socket
from urllib.parse import urlsplit

from agent_core import Gpu, Inventory, Json


def own_address(url: str) -> str:
    """The address of this machine as the server's network sees it; "" if there is no way there."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing: it only asks the routing table
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def has(inventory: Inventory) -> dict[str, Json]:
    """What register tells of the machine: what there is, not how busy it is."""
    gpus = [
        {"uuid": gpu.uuid, "name": gpu.name, "memory": gpu.memory_total} for gpu in inventory.gpus
    ]
    return {"gpus": gpus, "cpus": inventory.cpu_cores, "memory": inventory.memory_total}


def metrics(inventory: Inventory) -> dict[str, Json]:
    """The heartbeat's metrics; what cannot be read is left out, never faked."""
    found = {
        "cpu_usage_percent": _percent(inventory.cpu_percent),
        "memory_usage_percent": _percent(inventory.memory_percent),
        "memory_used_gb": _whole(inventory.memory_used, 2**30),
        "disk_usage_percent": _percent(inventory.disk_percent),
        "disk_used_gb": _whole(inventory.disk_used, 2**30),
        "gpu_metrics": [_gpu(gpu) for gpu in inventory.gpus] or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _gpu(gpu: Gpu) -> dict[str, Json]:
    found = {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "util_percent": gpu.util_percent,
        "memory_used_mb": _whole(gpu.memory_used, 2**20),
        "memory_total_mb": _whole(gpu.memory_total, 2**20),
        "temperature_c": gpu.temperature,
        "power_usage_w": _whole(gpu.power, 1),  # whole: a decoder of integers takes it too
    }
    return {name: value for name, value in found.items() if value is not None}


def _percent(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(min(max(value, 0.0), 100.0), 1)


def _whole(value: float | None, unit: int) -> int | None:
    return None if value is None or not math.isfinite(value) else round(value / unit)
