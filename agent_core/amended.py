"""A frozen dataclass with some fields changed: dataclasses.replace in a tenth of the time."""

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def amended(given: T, changes: Mapping[str, Any]) -> T:
    """A copy with these fields changed, of a class without slots. `__post_init__` is not called."""
    new = object.__new__(type(given))
    values = new.__dict__
    values.update(given.__dict__)
    values.update(changes)
    return new
