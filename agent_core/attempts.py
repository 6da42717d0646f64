"""Attempts at one task: an agent that is granted it anew never runs two of them at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from agent_core.models import Key, Task

LOST = "attempt lost: this agent was granted the task anew"


def replaced(held: Mapping[Key, Task], fresh: Sequence[Task]) -> list[Key]:
    """Those that are held and were taken back by the grant of these: a task has one attempt."""
    newest = {(task.source, task.id): task.key for task in fresh}
    return [key for key, task in held.items() if newest.get((task.source, task.id), key) != key]


def another(task: Task, here: Iterable[Key], source: Callable[[Key], str]) -> bool:
    """Whether one of these is another attempt at the task."""
    return any(
        key.task_id == task.id and key != task.key and source(key) == task.source for key in here
    )
