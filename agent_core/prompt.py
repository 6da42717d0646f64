"""Coroutines that answer at once: they are asked without a timer, which most never need."""

import inspect
import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any


def begin(asked: Awaitable[Any]) -> tuple[bool, Any]:
    """True and its answer, if it has one without waiting; else False and what is to be awaited.

    Must be called in the asyncio task that awaits the rest. Raises what the answer raises.
    """
    if not inspect.iscoroutine(asked):
        return False, asked
    try:
        waits_for = asked.send(None)
    except StopIteration as done:
        return True, done.value
    return False, _go_on(asked, waits_for)


@types.coroutine
def _go_on(asked: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """What `await` would have done with it, from its first wait on."""
    while True:
        error: BaseException | None = None
        try:
            got = yield waits_for
        except BaseException as raised:  # it was cancelled, or its time is up: that is for it
            error = raised
        try:
            waits_for = asked.throw(error) if error else asked.send(got)
        except StopIteration as done:
            return done.value
