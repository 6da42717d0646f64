"""GPUs end to end: real tasks, a real agent, NVIDIA's real binding, and devices that are none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent_core.testing.nvml import Fake, StandIn
from tests.end_to_end.site import Site, wait_for

TWO = (Fake("GPU-aaaa", "NVIDIA A100-SXM4-80GB", 80 * 2**30), Fake("GPU-bbbb", "Tesla T4"))


@pytest.fixture
def gpus(tmp_path: Path, engine: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Two devices, seen by every agent that starts from now on."""
    engine("cc")
    directory = tmp_path / "nvml"
    directory.mkdir()
    library = StandIn.build(directory, TWO)
    for name, value in library.environment.items():
        monkeypatch.setenv(name, value)
    return library


def holding(site: Site, wait: str) -> str:
    """A task that says which devices it has, and waits."""
    line = "holds $REMOTEGPU_TASK_ID $REMOTEGPU_RUN_NO $CUDA_DEVICE_ORDER:$CUDA_VISIBLE_DEVICES"
    return f'echo "{line}" >> {site.marks_file}\n{wait}'


def held(site: Site, task_id: str) -> str:
    """The devices that the task found, once it runs."""
    [mark] = wait_for(lambda: site.marks("holds", task_id), f"{task_id} runs")
    order, _, devices = mark.rest.partition(":")
    assert order == "PCI_BUS_ID"
    return str(devices)


def never_twice(site: Site) -> None:
    """By the marks, which stand in the order in which they were written."""
    holders: dict[str, str] = {}
    devices: dict[str, list[str]] = {}
    for mark in site.marks():
        if mark.what == "holds":
            devices[mark.task_id] = mark.rest.partition(":")[2].split(",")
            for each in devices[mark.task_id]:
                assert each not in holders, f"{mark.task_id} found the device of {holders[each]}"
                holders[each] = mark.task_id
        elif mark.what == "end":
            for each in devices.pop(mark.task_id, ()):
                del holders[each]


def test_three_tasks_share_two_gpus_one_at_a_time_also_across_a_kill_of_the_agent(
    site: Site, gpus: StandIn
) -> None:
    site.start_server()
    site.start_agent(agent__max_workers=4)
    gates = [site.gate(f"gate-{number}") for number in range(3)]
    tasks = [site.submit_marked(holding(site, gate.wait), resources={"gpus": 1}) for gate in gates]
    first, second = held(site, tasks[0]), held(site, tasks[1])
    assert {first, second} == {"GPU-aaaa", "GPU-bbbb"}
    assert site.wait(site.submit("true"))["status"] == "completed", "slots are free"
    assert site.task(tasks[2])["status"] == "pending"

    site.agents["one"].kill()
    gates[1].open()
    wait_for(lambda: site.marks("end", tasks[1]), "it ends while no agent is there")
    site.start_agent(agent__max_workers=4)

    assert held(site, tasks[2]) == second
    assert site.task(tasks[0])["status"] == "running"
    for gate in (gates[0], gates[2]):
        gate.open()
    assert [site.wait(task)["status"] for task in tasks] == ["completed"] * 3
    assert [len(site.marks("begin", task)) for task in tasks] == [1, 1, 1]
    never_twice(site)


def test_kind_and_size_choose_the_device_once_it_is_there_and_urgent_work_gets_it(
    site: Site, gpus: StandIn
) -> None:
    site.start_server()
    gpus.show()
    site.start_agent(agent__max_workers=2)
    gate = site.gate()
    wanted = {"gpus": 1, "gpu": "a100", "gpu_memory": "40GiB"}
    low = site.submit_marked(holding(site, gate.wait), resources=wanted, priority=9)
    assert site.wait(site.submit("true"))["status"] == "completed"
    assert site.task(low)["status"] == "pending", "that machine has no such device yet"
    gpus.show(*TWO)
    assert held(site, low) == "GPU-aaaa"
    other = site.submit_marked(holding(site, gate.wait), resources={"gpus": 1}, priority=9)
    assert held(site, other) == "GPU-bbbb"
    urgent = site.submit_marked(holding(site, "true"), resources=wanted, priority=1)
    assert site.wait(urgent)["status"] == "completed"
    assert held(site, urgent) == "GPU-aaaa"
    gate.open()
    task = site.wait(low)
    assert [run["reason"] for run in task["runs"]] == ["preempted", "exited"]
    assert [run["reason"] for run in site.wait(other)["runs"]] == ["exited"]
