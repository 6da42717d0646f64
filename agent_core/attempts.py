"""Attempts at one task: an agent that is granted it anew never runs two of them at once."""

from collections.abc import Iterable, Mapping, Sequence

from agent_core.models import Key, Task

LOST = "attempt lost: this agent was granted the task anew"


def replaced(held: Mapping[Key, Task], fresh: Sequence[Task]) -> list[Key]:
    """Those that are held and were taken back by the grant of these: a task has one attempt."""
    newest = {(task.source, task.id): task.key for task in fresh}
    return [key for key, task in held.items() if newest.get((task.source, task.id), key) != key]


def one_runs(task: Task, running: Iterable[Task]) -> bool:
    """Whether another attempt at the task is among those that have a slot."""
    return any((each.source, each.id) == (task.source, task.id) for each in running)
