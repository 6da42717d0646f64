"""A process that starts with a stand-in NVML, and tells of its GPUs whenever it is asked.

Each line of its input is the seconds by which its clock is turned first.
"""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path

import structlog
from structlog.testing import LogCapture

from agent_core import PluginContext
from agent_core.testing.clock import TurnedClock
from agent_core_plugins.machine_metrics import MachineMetrics


async def main(gpu_limit: float) -> None:
    clock, said = TurnedClock(), LogCapture()
    context = PluginContext(
        agent_id="a",
        machine_id="m",
        state_dir=Path("/"),
        runtime_dir=Path("/"),
        max_workers=1,
        clock=clock,
        log=structlog.wrap_logger(None, processors=[said]),
    )
    metrics = MachineMetrics({}, context, gpu_limit=gpu_limit)
    for line in sys.stdin:
        await clock.advance(float(line))
        found = await metrics.inventory()
        words = [str(entry["event"]) for entry in said.entries]
        said.entries.clear()
        binding = "pynvml" in sys.modules
        gpus = [dataclasses.asdict(gpu) for gpu in found.gpus]
        print(json.dumps({"gpus": gpus, "said": words, "binding": binding}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
