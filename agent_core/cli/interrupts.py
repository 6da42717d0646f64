"""Ctrl-C, held back while something is done that must not be cut in two."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_back() -> Iterator[None]:
    """Raises KeyboardInterrupt at the end, if Ctrl-C came meanwhile; a second one is not held."""
    ours = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not ours:
        yield
        return
    count = 0

    def caught(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:  # whoever should take our output does not
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, caught)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, ours)
    if count:
        raise KeyboardInterrupt
