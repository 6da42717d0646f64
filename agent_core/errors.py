"""The error tree. A message says what happened and what the reader does next."""

from agent_core.api.wire import Code


class RemoteGPUError(Exception):
    """The root of everything that we raise on purpose."""

    code: Code = Code.INTERNAL


class SettingsError(RemoteGPUError):
    """The settings cannot be used; the message names file, key and reason."""

    code = Code.INVALID


class PluginError(RemoteGPUError):
    """A plugin cannot be loaded, or broke its hook's contract; the message names it."""


class StateDirectoryError(RemoteGPUError):
    """The state or runtime directory cannot be used; the message says why and what to do."""


class StoreError(RemoteGPUError):
    """The store could not do what was asked; nothing of that request was kept."""


class StoreFull(StoreError):
    """No room on the disk. What was asked may be asked again later."""

    code = Code.FULL


class StoreUnusable(StoreError):
    """The store cannot be opened: corrupt, newer than the program, locked by another agent."""


class Conflict(StoreError):
    """The task is not in the state that the caller believed: somebody else was first."""

    code = Code.CONFLICT


class NotAccepted(RemoteGPUError):
    """A task that is submitted here and cannot be taken; `code` and message say why."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


class NeverRan(RemoteGPUError):
    """A start that began no process. `passing` if a later try may succeed (no memory, no room)."""

    code = Code.NEVER_RAN

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class Unreachable(RemoteGPUError):
    """The other side did not answer, or with something that is no answer; try again later."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds, if the other side named them


class Refused(RemoteGPUError):
    """The other side answered with a business code that is not 0."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.business_code = code


def reason_of(error: BaseException) -> str:
    """An exception as words for a task's record."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = str(error)
    return text if isinstance(error, RemoteGPUError) and text else f"{type(error).__name__}: {text}"
