"""Exit codes: what each means, which one an error ends with, and a task's own."""

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

import click

from agent_core.api.wire import Code, Json
from agent_core.errors import Refused, RemoteGPUError, SettingsError, Unreachable

DEBUG: Final = "REMOTEGPU_DEBUG"  # in the environment: show where an error came from


class Exit(IntEnum):
    """What a command ends with."""

    OK = 0
    FAILED = 1
    USAGE = 2  # nothing was sent
    NO_SUCH = 3
    REFUSED = 4
    UNREACHABLE = 5
    TIMED_OUT = 124  # the task
    NO_OWN_CODE = 125  # the task has no exit code of its own, or we failed while waiting for it
    INTERRUPTED = 130  # Ctrl-C
    PIPE_CLOSED = 141  # whoever read our output is gone


class CommandFailed(Exception):
    """A command that ends with one sentence and a code that its error alone does not tell."""

    def __init__(self, message: str, code: int, cause: Exception | None = None) -> None:
        super().__init__(message)
        self.exit_code = code
        self.cause = cause


def exit_code(error: Exception) -> int:
    """The code that an error ends a command with."""
    if isinstance(error, CommandFailed):
        return error.exit_code
    if isinstance(error, SettingsError):
        return Exit.USAGE
    if isinstance(error, Unreachable):
        return Exit.UNREACHABLE
    if isinstance(error, Refused):
        if error.business_code == Code.NO_SUCH_TASK:
            return Exit.NO_SUCH
        return Exit.FAILED if error.business_code == Code.INTERNAL else Exit.REFUSED
    return Exit.FAILED


def unexpected(error: Exception, code: int = Exit.FAILED) -> CommandFailed:
    """An error that nobody foresaw, in one sentence."""
    hint = f"please report it, with what it prints under {DEBUG}=1"
    return CommandFailed(f"internal error: {error!r}; {hint}", code, error)


@contextmanager
def failing_with(code: int) -> Iterator[None]:
    """Every failure inside ends the command with `code`: its other codes are the task's own."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # what cannot be written is a failure inside, too
    except (click.exceptions.Exit, click.ClickException, SettingsError, BrokenPipeError):
        raise
    except (RemoteGPUError, CommandFailed, OSError) as error:
        raise CommandFailed(str(error), code, error) from error
    except Exception as error:
        raise unexpected(error, code) from error


_NEVER_ENDED_ITSELF = frozenset({"refused", "never_ran", "lost", "dependency", "released"})
_NO_RUN_CODES = frozenset(
    {Code.POLICY, Code.NEVER_RAN, Code.LOST, Code.DEPENDENCY, Code.ATTEMPTS_EXHAUSTED}
)


def own_code(task: Mapping[str, Json]) -> int:
    """The exit code of a final task, as a shell would have given it."""
    status, reason, code = task.get("status"), task.get("reason"), task.get("exit_code")
    number = code if isinstance(code, int) and not isinstance(code, bool) else None
    if status == "completed":
        return number if number is not None and 0 <= number <= 255 else 0
    if status != "failed" or reason in _NEVER_ENDED_ITSELF:
        return Exit.NO_OWN_CODE
    if task.get("error_code") in _NO_RUN_CODES:
        return Exit.NO_OWN_CODE
    if reason == "timeout" or task.get("error_code") == Code.TIMED_OUT:
        return Exit.TIMED_OUT
    if number is not None and 1 <= number <= 255:
        return number
    return _signal_code(task.get("signal"))


def _signal_code(name: Json) -> int:
    if isinstance(name, str) and name in signal.Signals.__members__:
        return 128 + signal.Signals[name]
    return Exit.NO_OWN_CODE
