"""What this machine has and who holds it: nothing twice, and nothing for ever."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent_core.api.resources import Resources
from agent_core.inventory import Gpu, Inventory
from agent_core.machine import Machine
from agent_core.models import (
    Key,
)
from agent_core.testing.clock import TurnedClock
from tests.agent_core.core import task

GIB = 2**30


def gpu(number: int, name: str = "NVIDIA H100", memory: int | None = 80 * GIB) -> Gpu:
    return Gpu(index=number, uuid=f"GPU-{number}", name=name, memory_total=memory)


def inventory(*gpus: Gpu, cpus: int | None = 8, memory: int | None = 64 * GIB) -> Inventory:
    return Inventory(cpu_cores=cpus, memory_total=memory, gpus=gpus)


def machine(*gpus: Gpu, slots: int = 4, **labels: str) -> Machine:
    made = Machine(slots, labels, TurnedClock())
    made.learn(inventory(*gpus))
    return made


def wants(name: str = "t1", **resources: Any) -> Any:
    return task(name, resources=Resources(**resources))


# --- who holds what


def test_devices_are_given_and_taken_back_with_the_slot():
    house = machine(gpu(0), gpu(1))
    assert house.take(wants("a", gpus=1, cpus=2.5, memory=GIB)) == ("GPU-0",)
    assert house.take(wants("b", gpus=1)) == ("GPU-1",)
    assert house.take(wants("c", gpus=1)) is None
    assert house.take(wants("d")) == ()
    free = house.free
    assert (free.slots, free.devices, free.cpus, free.memory) == (1, (), 5.5, 63 * GIB)
    assert {each.task.id: len(each.devices) for each in house.running} == {"a": 1, "b": 1, "d": 0}
    house.give_back(wants("a").key)
    assert house.free.slots == 2
    assert house.free.cpus == 8.0
    assert house.take(wants("c", gpus=1)) == ("GPU-0",)


def test_what_does_not_fit_takes_nothing():
    house = machine(gpu(0))
    assert house.take(wants("a", gpus=1, cpus=9.0)) is None
    assert house.take(wants("a", gpus=2)) is None
    assert house.take(wants("a", memory=65 * GIB)) is None
    assert (house.free.slots, len(house.free.devices)) == (4, 1)


def test_those_that_are_wished_are_given_where_they_are_free_and_fit():
    house = machine(gpu(0), gpu(1), gpu(2, "Tesla T4"))
    assert house.take(wants("a", gpus=1), ["GPU-1"]) == ("GPU-1",)
    assert house.take(wants("b", gpus=1), ["GPU-1"]) == ("GPU-0",), "held already"
    assert house.take(wants("c", gpus=1, gpu="h100"), ["GPU-2"]) is None, "of another kind"


def test_parts_of_processors_add_up_to_whole_ones():
    house = machine()
    asked = [7.7, 0.2, 0.1, 0.1]  # 8 - (7.7 + 0.2) is less than 0.1 to a computer
    given_out = [house.take(wants(f"t{n}", cpus=each)) for n, each in enumerate(asked)]
    assert given_out == [(), (), (), None]
    assert house.free.cpus == 0.0


def test_what_ran_before_a_restart_keeps_its_devices_before_they_are_even_known():
    house = Machine(2, {}, TurnedClock())
    house.keep(task("a", resources=Resources(gpus=1), devices=("GPU-1",)))
    assert house.free.devices == ()
    assert house.learn(inventory(gpu(0), gpu(1)))
    assert [each.uuid for each in house.free.devices] == ["GPU-0"]
    [kept] = house.running
    assert kept.devices[0].name == "NVIDIA H100"
    assert house.take(wants("b", gpus=2)) is None
    house.give_back(Key("a", "a1"))
    assert house.take(wants("b", gpus=2)) == ("GPU-0", "GPU-1")


def test_one_that_ends_is_marked_so_and_an_unknown_one_is_no_error():
    house = machine()
    house.take(wants("a"))
    house.ending(wants("a").key)
    house.ending(wants("unknown").key)
    house.give_back(wants("unknown").key)
    assert [each.ending for each in house.running] == [True]


# --- what there is


def test_a_device_that_falls_off_is_given_to_nobody_and_comes_back():
    house = machine(gpu(0), gpu(1))
    assert not house.learn(inventory(gpu(0), gpu(1))), "nothing new"
    assert house.take(wants("a", gpus=1)) == ("GPU-0",)
    assert house.learn(inventory(gpu(1)))
    assert house.take(wants("b", gpus=1)) == ("GPU-1",)
    house.give_back(wants("a").key)
    assert house.free.devices == ()
    assert not house.could_run(wants("c", gpus=2))
    assert house.could_run(wants("c", gpus=1))
    assert house.lacks(wants("c", gpus=2)) == "", "it had two, and may have them again"
    house.learn(inventory(gpu(0), gpu(1)))
    assert [each.uuid for each in house.free.devices] == ["GPU-0"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"gpus": 2, "gpu": "a100"},
            'asks for 2 GPUs "a100"; this machine has 2 x NVIDIA H100 (80 GiB), 1 x Tesla T4',
        ),
        (
            {"gpus": 1, "gpu_memory": 96 * GIB},
            "asks for 1 GPU with 96 GiB; this machine has 2 x NVIDIA H100 (80 GiB), 1 x Tesla T4",
        ),
        ({"cpus": 9.5}, "asks for 9.5 cpus; this machine has 8"),
        ({"memory": 65 * GIB}, "asks for 65 GiB of memory; this machine has 64 GiB"),
        ({"gpus": 3, "cpus": 8.0, "memory": 64 * GIB}, ""),
        ({}, ""),
    ],
)
def test_what_it_never_had_is_said_in_words(asked: dict[str, Any], words: str):
    house = machine(gpu(0), gpu(1), gpu(2, "Tesla T4", None))
    assert house.lacks(wants(**asked)) == words


def test_what_is_not_known_is_not_there():
    house = Machine(1, {}, TurnedClock())
    assert house.lacks(wants(gpus=1)) == "asks for 1 GPU; this machine has no GPU"
    assert "does not tell how many" in house.lacks(wants(cpus=1.0))
    assert "does not tell how much" in house.lacks(wants(memory=1))


def test_labels_must_be_there_as_they_are_asked_for():
    house = machine(pool="a", site="berlin")
    assert house.lacks(task(labels={"pool": "a"})) == ""
    words = "asks for a machine with the label pool=b; this one has pool=a"
    assert house.lacks(task(labels={"site": "berlin", "pool": "b"})) == words
    words = "asks for a machine with the label zone=1; this one has no such label"
    assert house.lacks(task(labels={"zone": "1"})) == words


class MachineOfAnyFate(RuleBasedStateMachine):
    """Starts, ends, restarts and devices that come and go, beside a list of who holds what."""

    names = st.sampled_from([f"t{number}" for number in range(8)])
    asked = st.builds(
        Resources,
        gpus=st.integers(0, 3),
        gpu=st.sampled_from(["", "h100", "t4"]),
        cpus=st.sampled_from([0.0, 0.1, 3.0]),
        memory=st.sampled_from([0, 20 * GIB]),
    )
    present = st.sets(st.integers(0, 4))

    @initialize()
    def begin(self) -> None:
        self.there: tuple[Gpu, ...] = ()
        self.held: dict[str, Any] = {}  # by task, the task as it would be stored
        self.start_anew()

    @rule()
    def start_anew(self) -> None:
        """kill -9, and another agent: what runs is read from the store before anything starts."""
        self.house = Machine(4, {}, TurnedClock())
        for stored in self.held.values():
            self.house.keep(stored)
        self.house.learn(inventory(*self.there))

    @rule(numbers=present)
    def look(self, numbers: set[int]) -> None:
        kinds = ("NVIDIA H100", "Tesla T4")
        self.there = tuple(gpu(number, kinds[number % 2]) for number in sorted(numbers))
        self.house.learn(inventory(*self.there))

    @rule(name=names, asked=asked, wished=present)
    def take(self, name: str, asked: Resources, wished: set[int]) -> None:
        if name in self.held or len(self.held) == 4:
            return
        given = self.house.take(task(name, resources=asked), [f"GPU-{number}" for number in wished])
        if given is not None:
            assert len(given) == asked.gpus
            assert set(given) <= {each.uuid for each in self.there}
            self.held[name] = task(name, resources=asked, devices=given)

    @rule(name=names)
    def give_back(self, name: str) -> None:
        self.held.pop(name, None)
        self.house.give_back(task(name).key)

    @rule(name=names)
    def end(self, name: str) -> None:
        self.house.ending(task(name).key)

    @invariant()
    def nothing_is_held_twice(self) -> None:
        uuids = [uuid for each in self.held.values() for uuid in each.devices]
        assert len(uuids) == len(set(uuids))
        free = self.house.free
        assert not {each.uuid for each in free.devices} & set(uuids)
        assert {each.uuid for each in free.devices} | set(uuids) >= {x.uuid for x in self.there}
        assert free.slots == 4 - len(self.held)
        wanted = [each.resources for each in self.held.values()]
        assert free.cpus == pytest.approx(8 - sum(each.cpus for each in wanted))
        assert free.memory == 64 * GIB - sum(each.memory for each in wanted)
        assert free.cpus is not None
        assert free.cpus >= 0
        assert free.memory is not None
        assert free.memory >= 0


TestMachineOfAnyFate = MachineOfAnyFate.TestCase
TestMachineOfAnyFate.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
