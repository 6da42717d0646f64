"""Who makes room for whom, once no slot is free."""

from collections.abc import Collection, Sequence

from agent_core import PREEMPTION_DIFFERENCE, Free, Key, Running, Task, resources
from agent_core_plugins.priority_scheduler.order import Walk


def room_that_comes(running: Collection[Running], free: Free) -> Free | None:
    """What is free once those that are ending are gone. None: nobody is ending."""
    ending = [each for each in running if each.ending]
    for each in ending:
        free = resources.returned(free, each.task.resources, each.devices)
    return free if ending else None


def makes_room(running: Collection[Running], priority: int) -> bool:
    """Whether anybody would, for a task of this priority: asked at each turn, so it is quick."""
    least = priority + PREEMPTION_DIFFERENCE
    return any(each.task.priority >= least and not each.ending for each in running)


def victims(walk: Walk, running: Collection[Running], free: Free) -> list[Key]:
    """The running tasks that are to end, the least urgent first, of those who began last."""
    able = [each for each in running if not each.ending]
    least = max((each.task.priority for each in able), default=0)
    room = room_that_comes(running, free) or free
    chosen: list[Running] = []
    while (task := walk.next()) is not None and task.priority + PREEMPTION_DIFFERENCE <= least:
        made = _fewest(task, room, [each for each in able if each not in chosen])
        if made is None:
            walk.pass_over()
            continue
        chosen += made
        room = _with(room, made)
        given = resources.fitting(task.resources, room) or ()
        room = resources.without(room, task.resources, given)
    chosen.sort(key=_turn)
    return [each.task.key for each in chosen]


def _fewest(task: Task, room: Free, able: Sequence[Running]) -> list[Running] | None:
    """Who must go so that it fits: nobody, one, or as few as can be told. None: it does not."""
    if _fits(task, room):
        return []
    allowed = [each for each in able if each.task.priority >= task.priority + PREEMPTION_DIFFERENCE]
    allowed.sort(key=_turn)
    for each in allowed:
        if _fits(task, _with(room, [each])):
            return [each]
    if not _fits(task, _with(room, allowed)):
        return None
    needed = list(allowed)
    for each in reversed(allowed):  # the most urgent are let off first
        fewer = [other for other in needed if other is not each]
        if _fits(task, _with(room, fewer)):
            needed = fewer
    return needed


def _fits(task: Task, room: Free) -> bool:
    return room.slots > 0 and resources.fitting(task.resources, room) is not None


def _with(room: Free, given_up: Sequence[Running]) -> Free:
    for each in given_up:
        room = resources.returned(room, each.task.resources, each.devices)
    return room


def _turn(running: Running) -> tuple[int, float]:
    return -running.task.priority, -running.since
