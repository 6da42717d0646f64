"""GPUs as NVIDIA's own binding reads them, from a stand-in for the library below it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_core.testing.nvml import Fake, NoCompiler, StandIn
from agent_core_plugins.machine_metrics import GPU_AGAIN

A100 = Fake("GPU-a100", "NVIDIA A100-SXM4-80GB", 80 * 2**30)
T4 = Fake("GPU-t4", "Tesla T4", 15 * 2**30)


class Reader:
    """A process that reads its GPUs when it is asked."""

    def __init__(self, environment: dict[str, str], gpu_limit: float) -> None:
        child = Path(__file__).with_name("nvml_child.py")
        self._process = subprocess.Popen(
            [sys.executable, child, str(gpu_limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )

    def look(self, later: float = 0.0) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{later}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def uuids(self, later: float = 0.0) -> list[str]:
        return [gpu["uuid"] for gpu in self.look(later)["gpus"]]

    def close(self) -> int:
        self._process.communicate(timeout=20)
        return self._process.returncode


@pytest.fixture
def library(tmp_path: Path, engine: Callable[[str], str]) -> StandIn:
    engine("cc")
    return StandIn.build(tmp_path)


@pytest.fixture
def reader(library: StandIn) -> Iterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def start(*devices: Fake, gpu_limit: float = 20.0) -> Reader:
        library.show(*devices)
        made.append(Reader(library.environment, gpu_limit))
        return made[-1]

    yield start
    for each in made:
        assert each.close() == 0


def test_what_the_binding_tells_of_a_device_is_in_the_inventory(
    reader: Callable[..., Reader],
) -> None:
    answer = reader(A100, T4).look()
    assert answer["said"] == []
    assert answer["gpus"][0] == {
        "index": 0,
        "uuid": "GPU-a100",
        "name": "NVIDIA A100-SXM4-80GB",
        "util_percent": 37,
        "memory_used": 20 * 2**30,
        "memory_total": 80 * 2**30,
        "temperature": 41,
        "power": 71.5,
    }
    assert [gpu["uuid"] for gpu in answer["gpus"]] == ["GPU-a100", "GPU-t4"]


def test_none_one_and_four_devices_as_they_come_and_go(
    reader: Callable[..., Reader], library: StandIn
) -> None:
    process = reader()
    assert process.look() == {"gpus": [], "said": [], "binding": True}
    four = [Fake(f"GPU-{number}") for number in range(4)]
    for shown in ([A100], four, []):
        library.show(*shown)
        assert process.uuids() == [each.uuid for each in shown]


def test_a_device_that_falls_off_the_bus_takes_no_other_with_it(
    reader: Callable[..., Reader], library: StandIn
) -> None:
    process = reader(A100, T4)
    assert process.uuids() == ["GPU-a100", "GPU-t4"]
    library.show(Fake("GPU-a100", lost=True), T4)
    answer = process.look()
    assert [(gpu["uuid"], gpu["index"]) for gpu in answer["gpus"]] == [("GPU-t4", 1)]
    library.show(A100, T4)
    assert process.uuids() == ["GPU-a100", "GPU-t4"]


def test_a_driver_that_is_unloaded_and_loaded_again_is_found_again(
    reader: Callable[..., Reader], library: StandIn
) -> None:
    process = reader(A100)
    assert process.uuids() == ["GPU-a100"]
    library.unload()
    answer = process.look()
    assert answer["gpus"] == []
    assert answer["said"] == ["no NVIDIA GPU can be read: Driver Not Loaded"]
    library.show(A100)
    assert process.uuids() == [], "it is left alone for a while"
    assert process.uuids(later=GPU_AGAIN + 1) == ["GPU-a100"]


def test_a_driver_that_hangs_is_said_and_found_again_when_it_goes_on(
    reader: Callable[..., Reader], library: StandIn
) -> None:
    process = reader(A100, gpu_limit=0.2)
    library.hang()
    answer = process.look()
    assert answer["gpus"] == []
    assert answer["said"] == ["the NVIDIA driver did not answer within 0.2 s"]
    assert process.look(later=GPU_AGAIN + 1) == {"gpus": [], "said": [], "binding": True}
    library.show(A100)
    for _ in range(10_000):  # the call that hung has to come back first
        if process.uuids(later=GPU_AGAIN + 1):
            break
    else:
        raise AssertionError("it was not found again")


def test_a_machine_without_the_library_does_not_load_the_binding(tmp_path: Path) -> None:
    process = Reader({"LD_LIBRARY_PATH": str(tmp_path)}, 20.0)
    answer = process.look()
    if answer["gpus"]:
        pytest.skip("this machine has a GPU")
    assert answer["binding"] is False
    assert "libnvidia-ml.so.1" in answer["said"][0]
    assert process.close() == 0


def test_who_has_no_compiler_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoCompiler, match="no C compiler"):
        StandIn.build(tmp_path)
