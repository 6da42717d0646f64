"""What a batch of events may hold; each event is judged alone, so a bad one costs no other."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from agent_control_plane.schemas import (
    INT32,
    INT64,
    Base64,
    FromAgent,
    Name,
    Note,
    Said,
    Truncated,
    Usage,
    Word,
    cut_message,
    wrong,
)
from agent_core.api.bodies import Problem, in_words
from agent_core.api.wire import Code, epoch


def _moment(text: object) -> object:
    try:
        return epoch(text)
    except (ValueError, OverflowError) as error:
        raise wrong(f"a time is needed: {error}") from None


# RFC 3339 text, read as seconds since the epoch.
Moment = Annotated[float | None, BeforeValidator(_moment, json_schema_input_type=str)]
ExitCode = Annotated[int, Field(ge=-(2**31), le=2**32 - 1)]


class _Event(FromAgent):
    seq: int = Field(0, ge=0, le=INT64)
    at: Moment = None


class OfRun(_Event):
    task_id: Name
    attempt_id: Name
    run_no: int = Field(1, ge=0, le=INT32)


class StartEvent(OfRun):
    kind: Literal["start"]
    started_at: Moment = None


class RenewEvent(OfRun):
    kind: Literal["renew"]


class ProgressEvent(OfRun):
    kind: Literal["progress"]
    percent: int | None = Field(None, ge=0, le=100)
    message: Annotated[str, AfterValidator(cut_message)] | None = None


class StateEvent(OfRun):
    kind: Literal["state"]
    status: Literal["suspended", "running"]


class Ending(OfRun):
    exit_code: ExitCode | None = None
    signal: Word | None = None
    reason: Word | None = None
    error_code: int | None = Field(None, ge=0, le=INT32)
    error: Said | None = None
    usage: Usage | None = None
    truncated: Truncated | None = None
    stdout: Said | None = None
    stderr: Said | None = None
    stdout_base64: Base64 | None = None
    stderr_base64: Base64 | None = None


class RunEvent(Ending):
    kind: Literal["run"]
    next_run_at: Moment = None


class CompleteEvent(Ending):
    kind: Literal["complete"]
    status: Literal["completed", "failed", "cancelled"] | None = None


class CommandEvent(_Event):
    kind: Literal["command"]
    id: Name
    code: int = Field(0, ge=0, le=INT32)
    message: Note | None = None


Event = Annotated[
    StartEvent | RenewEvent | ProgressEvent | StateEvent | RunEvent | CompleteEvent | CommandEvent,
    Field(discriminator="kind"),
]
Read = (
    StartEvent
    | RenewEvent
    | ProgressEvent
    | StateEvent
    | RunEvent
    | CompleteEvent
    | CommandEvent
    | Problem
)
_ALL: TypeAdapter[list[Event]] = TypeAdapter(list[Event])
_ONE: TypeAdapter[Event] = TypeAdapter(Event)


def read_events(given: list[Any]) -> list[Read]:
    """Each event, or what is wrong with it; all at once where nothing is."""
    try:
        return list(_ALL.validate_python(given))
    except ValidationError:
        return [_read(each) for each in given]


def _read(given: Any) -> Read:
    try:
        return _ONE.validate_python(given)
    except ValidationError as error:
        return Problem(Code.INVALID, in_words(error))


class _Told:
    """In the document a list of events; what each really is, is judged one by one."""

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(_ALL.core_schema)


class Events(FromAgent):
    agent_id: Name
    machine_id: Name
    stream: Name = Field(description="a random id of the agent's database; seq counts within it")
    events: Annotated[list[Any], _Told()] = Field(description="at most limits.events of them")
