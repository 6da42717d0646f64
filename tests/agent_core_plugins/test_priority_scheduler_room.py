"""Who fits what is free, who waits although others start, and who makes room for whom."""

from collections import Counter, deque
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent_core import PREEMPTION_DIFFERENCE, Device, Free, Key, Resources, Running, Task, resources
from agent_core.testing.making import make_task
from agent_core_plugins.priority_scheduler.line import PASSES, Line, costs

BIG = [Device(uuid=f"GPU-{n}", name="NVIDIA A100", memory=80 * 2**30) for n in range(2)]
SMALL = [Device(uuid=f"GPU-{n}", name="Tesla T4", memory=16 * 2**30) for n in range(2, 4)]
ALL = (*BIG, *SMALL)
WHOLE = Free(slots=4, devices=ALL, cpus=8.0, memory=2**36)


def gpus(count: int, **more: Any) -> Resources:
    return Resources(gpus=count, **more)


def line_of(*tasks: Task) -> Line:
    line = Line()
    for task in tasks:
        line.add(task)
    return line


def ids(plan: Any) -> list[str]:
    return [task.id for task in plan.start]


# --- what fits


def test_together_they_fit_and_each_gets_devices_of_its_own():
    line = line_of(
        make_task(id="one", created_at=1.0, resources=gpus(1)),
        make_task(id="a100", created_at=2.0, resources=gpus(2, gpu="a100")),
        make_task(id="no", created_at=3.0, resources=gpus(2)),
        make_task(id="last", created_at=4.0, resources=gpus(1)),
    )
    plan = line.next([], WHOLE)
    assert ids(plan) == ["one", "a100", "last"]
    given_out = [uuid for uuids in plan.devices.values() for uuid in uuids]
    assert sorted(given_out) == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    assert sorted(plan.devices[Key("a100", "attempt-1")]) == ["GPU-0", "GPU-1"]


def test_what_does_not_fit_is_passed_by_what_asks_for_less_or_for_nothing():
    line = line_of(
        make_task(id="much", priority=1, resources=Resources(cpus=6.0)),
        make_task(id="little", priority=5, resources=Resources(cpus=2.0)),
        make_task(id="nothing", priority=9),
    )
    assert ids(line.next([], Free(slots=3, cpus=4.0))) == ["little", "nothing"]


def test_what_the_machine_does_not_tell_fits_nobody():
    line = line_of(make_task(id="memory", resources=Resources(memory=1)), make_task(id="none"))
    assert ids(line.next([], Free(slots=2))) == ["none"]


def test_of_a_thousand_that_do_not_fit_one_is_looked_at():
    line = line_of(*[make_task(resources=gpus(1)) for _ in range(1000)], make_task(id="small"))
    looked: list[Task] = []
    take = line._order.take

    def counted(kind: Resources) -> Task:
        looked.append(take(kind))
        return looked[-1]

    line._order.take = counted  # type: ignore[method-assign]  # counts, and changes nothing
    assert ids(line.next([], Free(slots=5))) == ["small"]
    assert len(looked) == 2


# --- nobody starves


def test_a_big_one_is_passed_a_bounded_number_of_times():
    """Eight slots, four devices, and a stream of small work that never ends."""
    big = make_task(id="big", created_at=0.0, resources=gpus(4))
    line = line_of(big)
    running: deque[tuple[Task, list[str]]] = deque()
    free = {device.uuid: device for device in ALL}
    for number in range(3):  # before it came
        running.append((make_task(resources=gpus(1)), [f"GPU-{number}"]))
        del free[f"GPU-{number}"]
    passes = 0
    for number in range(1000):
        line.add(make_task(id=f"small-{number:03}", created_at=1.0 + number, resources=gpus(1)))
        plan = line.next([], Free(slots=8 - len(running), devices=tuple(free.values())))
        for task in plan.start:
            line.remove(task.key)
            uuids = list(plan.devices[task.key])
            for uuid in uuids:
                del free[uuid]
            running.append((task, uuids))
        if any(task is big for task, _ in running):
            break
        passes += len(plan.start)
        for uuid in running.popleft()[1] if running else ():
            free[uuid] = next(device for device in ALL if device.uuid == uuid)
    else:
        raise AssertionError("it starved")
    assert passes == PASSES


def test_a_task_that_asks_for_nothing_is_not_held_up_by_one_that_waits_for_devices():
    big = make_task(id="big", resources=gpus(4))
    line = line_of(big)
    for number in range(PASSES):
        small = make_task(created_at=big.created_at + 1, resources=gpus(1))
        line.add(small)
        assert ids(line.next([], Free(slots=1, devices=ALL[:1]))) == [small.id], number
        line.remove(small.key)
    for each in ("gpu", "plain"):
        wanted = gpus(1) if each == "gpu" else Resources()
        line.add(make_task(id=each, created_at=big.created_at + 2, resources=wanted))
    assert ids(line.next([], Free(slots=4, devices=ALL[:3]))) == ["plain"]
    assert ids(line.next([], Free(slots=4, devices=ALL))) == ["big", "plain"]


def test_what_comes_free_in_a_moment_is_kept_for_whom_it_is_enough():
    """Two make room for one that needs both devices: none of them takes the first one back."""
    ending = make_task(resources=gpus(1))
    line = line_of(
        make_task(id="urgent", priority=1, resources=gpus(2)),
        make_task(id="small", priority=9, resources=gpus(1)),
    )
    running = [Running(ending, (BIG[1],), ending=True)]
    assert ids(line.next(running, Free(slots=1, devices=(BIG[0],)))) == []
    assert ids(line.next([], Free(slots=2, devices=(*BIG,)))) == ["urgent"]


def test_being_planned_and_not_started_is_no_pass():
    big, small = make_task(id="big", resources=gpus(2)), make_task(id="small", resources=gpus(1))
    line = line_of(big, small)
    for _ in range(5 * PASSES):
        assert ids(line.next([], Free(slots=1, devices=ALL[:1]))) == ["small"]


def test_in_one_plan_a_big_one_is_passed_no_more_often_than_in_many():
    big = make_task(id="big", resources=Resources(cpus=16.0))
    small = [
        make_task(created_at=big.created_at + 1, resources=Resources(cpus=1.0)) for _ in range(15)
    ]
    line = line_of(big, *small)
    assert len(line.next([], Free(slots=20, cpus=15.0)).start) == PASSES


def test_how_often_one_was_passed_is_forgotten_when_it_has_left():
    big, small = make_task(id="big", resources=gpus(2)), make_task(resources=gpus(1))
    line = line_of(big, small)
    line.next([], Free(slots=1, devices=ALL[:1]))
    line.remove(small.key)
    assert line._passed == {big.key: 1}
    line.remove(big.key)
    assert line._passed == {}


def test_one_that_asks_for_something_else_by_now_is_planned_once():
    before = make_task(id="changed", resources=gpus(1))
    line = line_of(before, replace(before, resources=Resources()))
    assert ids(line.next([], WHOLE)) == ["changed"]
    assert ids(line.next([], Free(slots=4))) == ["changed"]


wishes = st.one_of(
    st.just(Resources()),
    st.builds(Resources, gpus=st.integers(1, 4)),
    st.builds(Resources, gpus=st.integers(1, 2), gpu=st.sampled_from(["a100", "t4"])),
    st.builds(Resources, cpus=st.sampled_from([0.5, 2.0, 8.0])),
    st.builds(Resources, gpus=st.integers(0, 2), memory=st.sampled_from([2**34, 2**36])),
)
steps = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 2), wishes),
    st.tuples(st.just("end"), st.integers(0, 9), st.none()),
)


class House:
    """A machine of four slots and four devices, run by a line."""

    def __init__(self) -> None:
        self.line = Line()
        self.waiting: dict[Key, Task] = {}
        self.running: list[Running] = []
        self.passed: Counter[Key] = Counter()
        self.clock = 0.0

    @property
    def free(self) -> Free:
        held = {device.uuid for each in self.running for device in each.devices}
        wanted = [each.task.resources for each in self.running]
        return Free(
            slots=WHOLE.slots - len(self.running),
            devices=tuple(device for device in ALL if device.uuid not in held),
            cpus=8.0 - sum(each.cpus for each in wanted),
            memory=2**36 - sum(each.memory for each in wanted),
        )

    def add(self, priority: int, wish: Resources) -> None:
        self.clock += 1
        task = make_task(priority=priority, created_at=self.clock, resources=wish)
        self.waiting[task.key] = task
        self.line.add(task)

    def end(self, number: int) -> None:
        if self.running:
            self.running.pop(number % len(self.running))

    def start(self) -> None:
        plan = self.line.next(self.running, self.free)
        for task in plan.start:
            room = self.free
            uuids = plan.devices.get(task.key, ())
            devices = tuple(device for device in room.devices if device.uuid in uuids)
            assert len(devices) == len(uuids), "a device was given that somebody holds"
            named = Free(slots=1, devices=devices, cpus=room.cpus, memory=room.memory)
            assert resources.fitting(task.resources, named) is not None
            self._count(task, devices)
            self.line.remove(task.key)
            del self.waiting[task.key]
            self.running.append(Running(task, devices))
        assert len(self.running) <= WHOLE.slots

    def _count(self, starting: Task, devices: tuple[Device, ...]) -> None:
        """Who is passed at its cost: those in front of it, and of each kind the first alone."""
        kinds: set[Resources] = set()
        for task in sorted(
            self.waiting.values(), key=lambda task: (task.priority, task.created_at)
        ):
            if task is starting:
                break
            if task.resources not in kinds and costs(task, starting, devices):
                self.passed[task.key] += 1
                assert self.passed[task.key] <= PASSES
            kinds.add(task.resources)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=120))
def test_whatever_comes_and_ends_nothing_is_held_twice_and_nobody_is_passed_for_ever(
    given_steps: list[tuple[str, int, Any]],
):
    house = House()
    for kind, number, wish in given_steps:
        if kind == "add":
            house.add(number, wish)
        else:
            house.end(number)
        house.start()
    for _ in range(len(house.waiting) + len(house.running) + 1):
        house.end(0)
        house.start()
    assert not house.waiting, "when no more comes, everybody has had a turn"


# --- who makes room


def full(*running: Running) -> tuple[list[Running], Free]:
    return list(running), Free(slots=0, devices=(), cpus=0.0, memory=0)


def at(name: str, priority: int, since: float = 0.0, **more: Any) -> Running:
    devices = more.pop("devices", ())
    task = make_task(id=name, priority=priority, resources=more.pop("wish", gpus(len(devices))))
    return Running(task, devices, since, **more)


def named(plan: Any) -> list[str]:
    return [key.task_id for key in plan.preempt]


def test_nobody_makes_room_while_a_slot_is_free_or_for_what_is_hardly_more_urgent():
    running, free = full(at("low", 10), at("middle", 5))
    line = line_of(make_task(id="urgent", priority=1))
    assert named(line.next(running, Free(slots=1))) == []
    assert named(line.next(running, free)) == ["low"]
    assert named(line_of(make_task(priority=8)).next(running, free)) == []


def test_the_least_urgent_and_of_those_the_one_that_began_last():
    running, free = full(at("old", 9, 1.0), at("new", 9, 2.0), at("less", 8, 3.0))
    urgent = [make_task(priority=2), make_task(priority=3), make_task(priority=5)]
    assert named(line_of(*urgent).next(running, free)) == ["new", "old", "less"]


def test_those_that_are_ending_are_room_already():
    running, free = full(at("a", 9, ending=True), at("b", 9))
    assert named(line_of(make_task(priority=1)).next(running, free)) == []
    both = line_of(make_task(priority=1), make_task(priority=2))
    assert named(both.next(running, free)) == ["b"]
    assert named(line_of(make_task(priority=1)).next([running[0]], free)) == []


def test_it_takes_one_whose_devices_are_enough_rather_than_several():
    running, free = full(
        at("none", 10, 9.0),
        at("one", 10, 8.0, devices=(SMALL[0],)),
        at("other", 10, 7.0, devices=(SMALL[1],)),
        at("both", 9, 1.0, devices=(*BIG,)),
    )
    assert named(line_of(make_task(priority=1, resources=gpus(2))).next(running, free)) == ["both"]
    a100 = line_of(make_task(priority=1, resources=gpus(1, gpu="A100")))
    assert named(a100.next(running, free)) == ["both"]
    three = line_of(make_task(priority=1, resources=gpus(3)))
    assert named(three.next(running, free)) == ["one", "both"]
    a100.add(make_task(priority=2))
    assert named(a100.next(running, free)) == ["none", "both"], "the least urgent first"


def test_nobody_makes_room_in_vain():
    running, free = full(at("low", 10, devices=(SMALL[0],)), at("equal", 1, devices=(*BIG,)))
    a100 = line_of(make_task(priority=1, resources=gpus(1, gpu="a100")), make_task(priority=2))
    assert named(a100.next(running, free)) == ["low"], "for the one that asks for nothing"
    assert named(line_of(make_task(priority=1, resources=gpus(4))).next(running, free)) == []


places = st.lists(
    st.tuples(st.integers(1, 10), st.sampled_from([0, 0, 1, 2]), st.booleans()), max_size=6
)


@settings(max_examples=300, deadline=None)
@given(places, st.integers(1, 10), wishes)
def test_who_makes_room_is_enough_is_needed_and_is_less_urgent(
    slots: list[tuple[int, int, bool]], priority: int, wish: Resources
):
    left = list(ALL)
    running = []
    for number, (theirs, count, ending) in enumerate(slots):
        devices = tuple(left.pop() for _ in range(min(count, len(left))))
        running.append(at(f"r{number}", theirs, float(number), devices=devices, ending=ending))
    free = Free(slots=0, devices=tuple(left), cpus=8.0, memory=2**36)
    task = make_task(priority=priority, resources=wish)
    chosen = [
        each for each in running if each.task.key in line_of(task).next(running, free).preempt
    ]

    def fits(gone: list[Running]) -> bool:
        room = free
        for each in gone:
            room = resources.returned(room, each.task.resources, each.devices)
        return room.slots > 0 and resources.fitting(wish, room) is not None

    ending = [each for each in running if each.ending]
    able = [
        each
        for each in running
        if not each.ending and each.task.priority >= priority + PREEMPTION_DIFFERENCE
    ]
    assert all(each in able for each in chosen)
    if fits(ending):
        assert chosen == [], "its room is coming already"
    elif fits(ending + able):
        assert fits(ending + chosen)
        assert not any(
            fits(ending + [other for other in chosen if other is not each]) for each in chosen
        ), "one of them was not needed"
        if any(fits([*ending, each]) for each in able):
            assert len(chosen) == 1
    else:
        assert chosen == []
