"""What this machine has, and who holds which part of it: slots, devices, processors, memory."""

from collections.abc import Collection, Mapping, Sequence

from agent_core.api import resources
from agent_core.api.resources import Device, Free, Resources
from agent_core.clock import Clock
from agent_core.inventory import Inventory
from agent_core.log import get
from agent_core.models import Key, Running, Task

GIB = 2**30


class Machine:
    """Nothing is held twice: a device belongs to one taken slot, from `take` to `give_back`.

    What nobody could read does not exist: a driver that is away has no devices, until it is back.
    """

    def __init__(self, slots: int, labels: Mapping[str, str], clock: Clock) -> None:
        self.slots = slots
        self._labels = labels
        self._clock = clock
        self._devices: dict[str, Device] = {}  # that can be read now
        self._seen: dict[str, Device] = {}  # those and the ones that could be read before
        self._cpus: float | None = None
        self._memory: int | None = None  # bytes
        self._running: dict[Key, Running] = {}
        self._asking: dict[Key, Resources] = {}  # of those that asked for anything
        self._log = get("machine")

    @property
    def running(self) -> Collection[Running]:
        """Who has a slot."""
        return self._running.values()

    @property
    def free_slots(self) -> int:
        return max(0, self.slots - len(self._running))

    @property
    def free(self) -> Free:
        if not self._asking:
            return Free(
                slots=self.free_slots,
                devices=tuple(self._devices.values()),
                cpus=self._cpus,
                memory=self._memory,
            )
        held = {device.uuid for each in self._running.values() for device in each.devices}
        used = self._asking.values()
        return Free(
            slots=self.free_slots,
            devices=tuple(each for uuid, each in self._devices.items() if uuid not in held),
            cpus=None if self._cpus is None else _left(self._cpus, [each.cpus for each in used]),
            memory=None if self._memory is None else self._memory - sum(x.memory for x in used),
        )

    # --- who holds what

    def take(self, task: Task, wished: Sequence[str] = ()) -> tuple[str, ...] | None:
        """A slot and what the task asks for; the UUIDs of its devices, None if it does not fit.

        `wished` names the devices, where they are free and such as it asks for.
        """
        if not task.resources:
            self._running[task.key] = Running(task, since=self._clock.wall())
            return ()
        free = self.free
        named = tuple(each for each in free.devices if each.uuid in wished)
        devices = resources.fitting(
            task.resources, Free(slots=1, devices=named, cpus=free.cpus, memory=free.memory)
        )
        if devices is None:
            devices = resources.fitting(task.resources, free)
        if devices is None:
            return None
        self._hold(task, devices, self._clock.wall())
        return tuple(device.uuid for device in devices)

    def keep(self, task: Task) -> None:
        """It has its slot and its devices since before the agent was restarted."""
        unknown = {uuid: Device(uuid=uuid, name="") for uuid in task.devices}
        known = {**unknown, **self._seen}
        began = task.started_at or task.assigned_at
        since = began.wall if began else self._clock.wall()
        self._hold(task, tuple(known[uuid] for uuid in task.devices), since)

    def _hold(self, task: Task, devices: tuple[Device, ...], since: float) -> None:
        self._running[task.key] = Running(task, devices, since)
        if task.resources:
            self._asking[task.key] = task.resources

    def holds(self, key: Key) -> bool:
        """It has a slot."""
        return key in self._running

    def ending(self, key: Key) -> None:
        """It was told to end: its room is coming."""
        if running := self._running.get(key):
            self._running[key] = running._replace(ending=True)

    def give_back(self, key: Key) -> Running | None:
        """Its slot and all that it held is free. None if it had none any more."""
        self._asking.pop(key, None)
        return self._running.pop(key, None)

    # --- what there is

    def learn(self, inventory: Inventory) -> bool:
        """What can be read now. True if that is something else than before."""
        devices = {
            gpu.uuid: Device(uuid=gpu.uuid, name=gpu.name, memory=gpu.memory_total)
            for gpu in inventory.gpus
        }
        cpus = None if inventory.cpu_cores is None else float(inventory.cpu_cores)
        if (devices, cpus, inventory.memory_total) == (self._devices, self._cpus, self._memory):
            return False
        for uuid in self._devices.keys() - devices.keys():
            self._log.warning("a GPU cannot be read any more: no task gets it", gpu=uuid)
        for uuid in devices.keys() - self._devices.keys():
            self._log.info("a GPU that tasks may have", gpu=uuid, name=devices[uuid].name)
        self._devices, self._cpus, self._memory = devices, cpus, inventory.memory_total
        self._seen |= devices
        for key, running in self._running.items():  # what was kept by name alone is known now
            known = tuple(self._seen.get(each.uuid, each) for each in running.devices)
            if known != running.devices:
                self._running[key] = running._replace(devices=known)
        return True

    def could_run(self, task: Task) -> bool:
        """Whether it would fit if nothing else ran, as the machine is now."""
        return not task.resources or self._fits(task.resources, self._devices.values())

    def lacks(self, task: Task) -> str:
        """In words, what the task asks for and this machine never had. "" if there is nothing."""
        for name, value in task.labels.items():
            if self._labels.get(name) != value:
                has = f"{name}={self._labels[name]}" if name in self._labels else "no such label"
                return f"asks for a machine with the label {name}={value}; this one has {has}"
        wanted = task.resources
        if not wanted or self._fits(wanted, self._seen.values()):
            return ""
        if wanted.cpus and (self._cpus is None or wanted.cpus > self._cpus):
            has = "does not tell how many it has" if self._cpus is None else f"has {self._cpus:g}"
            return f"asks for {wanted.cpus:g} cpus; this machine {has}"
        if wanted.memory and (self._memory is None or wanted.memory > self._memory):
            has = (
                "does not tell how much it has"
                if self._memory is None
                else (f"has {_size(self._memory)}")
            )
            return f"asks for {_size(wanted.memory)} of memory; this machine {has}"
        return f"asks for {_asked(wanted)}; this machine has {_devices(self._seen.values())}"

    def _fits(self, wanted: Resources, devices: Collection[Device]) -> bool:
        whole = Free(slots=1, devices=tuple(devices), cpus=self._cpus, memory=self._memory)
        return resources.fitting(wanted, whole) is not None


def _left(total: float, used: Sequence[float]) -> float:
    return round(total - sum(used), 6)  # or ten tenths would not be one


def _asked(wanted: Resources) -> str:
    words = f"{wanted.gpus} GPU{'s' if wanted.gpus > 1 else ''}"
    if wanted.gpu:
        words += f' "{wanted.gpu}"'
    if wanted.gpu_memory:
        words += f" with {_size(wanted.gpu_memory)}" + (" each" if wanted.gpus > 1 else "")
    return words


def _devices(devices: Collection[Device]) -> str:
    counts: dict[str, int] = {}
    for each in devices:
        name = each.name + (f" ({_size(each.memory)})" if each.memory else "")
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} x {name}" for name, count in counts.items()) or "no GPU"


def _size(count: int) -> str:
    return f"{count / GIB:.4g} GiB"
