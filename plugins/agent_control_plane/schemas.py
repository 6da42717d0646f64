"""What requests may hold: strict models that validate at the door and make the OpenAPI document."""

import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from agent_control_plane import needs
from agent_core import resources
from agent_core.api.wire import REPLACEMENT

ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
METRICS_LIMIT = 64 * 1024  # bytes of JSON
INT32 = 2**31 - 1
INT64 = 2**63 - 1
YEARS = 10 * 366 * 86400  # seconds; the longest time that anything is asked to take


class FromAgent(BaseModel):
    """Unknown keys are ignored, or an agent could not be upgraded before its server."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class FromUser(BaseModel):
    """Unknown keys are refused with the nearest known name."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{words}", {"words": message})


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise _wrong("must not hold a NUL character: no program could be given it")
    return text


def _replace_nul(text: str) -> str:
    return text.replace("\0", REPLACEMENT)


def _seconds(value: object) -> object:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        raise _wrong(f"whole seconds are written without a point: {int(value)}")
    return value


def _absolute(path: str) -> str:
    if path and not path.startswith("/"):
        raise _wrong('must be an absolute path, or "" for a private scratch directory of the run')
    return path


def _variable(name: str) -> str:
    if not name or "=" in name or "\0" in name:
        raise _wrong("the name of a variable must not be empty, nor hold = or a NUL character")
    return name


def cut_message(text: str) -> str:
    return text.replace("\0", REPLACEMENT)[:500]


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(value, allow_nan=False))
    except ValueError:
        raise _wrong("must hold finite numbers only") from None
    if size > METRICS_LIMIT:
        raise _wrong(f"must be at most {METRICS_LIMIT} bytes as JSON")
    return value


Plain = Annotated[str, AfterValidator(_no_nul)]
Said = Annotated[str, AfterValidator(_replace_nul)]  # by an agent: NUL becomes U+FFFD
Seconds = Annotated[float, BeforeValidator(_seconds)]
Name = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_no_nul)]
# Beside what matters: cut rather than refused, or a result would be lost for a word too long.
Word = Annotated[str, AfterValidator(lambda text: _replace_nul(text)[:64])]
Note = Annotated[str, AfterValidator(lambda text: _replace_nul(text)[:255])]


# From agents.


class Gpu(FromAgent):
    name: Note | None = None
    memory: int | None = Field(None, ge=0, le=INT64, description="bytes in all; null: not known")


class FreeResources(FromAgent):
    gpus: list[Gpu] | None = Field(None, max_length=resources.MOST_GPUS)
    cpus: float | None = Field(None, ge=0)
    memory: int | None = Field(None, ge=0, le=INT64, description="bytes")


class Free(FromAgent):
    """What nobody uses; what is not told is not there for a task that asks for it."""

    slots: int = Field(0, ge=0, le=100_000)
    resources: FreeResources | None = None
    urgent_at_most: int | None = Field(
        None, description="with limit 0: a task of this priority or a more urgent one makes room"
    )


class Register(FromAgent):
    agent_id: Name
    machine_id: Name
    version: Note | None = None
    hostname: Note | None = None
    ip_address: Note | None = None
    agent_port: int | None = Field(None, ge=0, le=65535)
    max_workers: int | None = Field(None, ge=0, le=100_000)
    capabilities: list[Word] | None = Field(None, max_length=100)
    labels: dict[Note, Note] | None = Field(None, max_length=1000)
    executors: list[Note] | None = Field(None, max_length=100)
    gpus: list[Gpu] | None = Field(None, max_length=resources.MOST_GPUS)
    cpus: float | None = Field(None, ge=0, description="that tasks may use, in all")
    memory: int | None = Field(None, ge=0, le=INT64, description="bytes in all")


class Heartbeat(FromAgent):
    agent_id: Name
    machine_id: Name
    metrics: Annotated[dict[str, Any], AfterValidator(_bounded)] | None = None


class Claim(FromAgent):
    agent_id: Name
    machine_id: Name
    limit: int = Field(10, ge=0, le=100_000)
    request_id: Annotated[str, Field(max_length=255), AfterValidator(_no_nul)] | None = None
    wait_sec: int = Field(0, ge=0, le=60, description="seconds to wait while there is nothing")
    free: Free | None = None


class OfAttempt(FromAgent):
    agent_id: Name
    attempt_id: Name


class StartCall(OfAttempt):
    pass


class RenewCall(OfAttempt):
    extend_sec: int | None = Field(None, ge=0, le=INT32, description="ignored: register tells it")


class ProgressCall(OfAttempt):
    percent: int | None = Field(None, ge=0, le=100)
    message: Annotated[str, AfterValidator(cut_message)] | None = None


class Usage(FromAgent):
    wall_s: float | None = None
    user_s: float | None = None
    system_s: float | None = None
    max_rss_bytes: int | None = Field(None, ge=0, le=INT64)


class Truncated(FromAgent):
    """Bytes dropped; null = some, number unknown."""

    stdout: int | None = Field(0, ge=0, le=INT64)
    stderr: int | None = Field(0, ge=0, le=INT64)


class CompleteCall(OfAttempt):
    exit_code: int | None = Field(None, ge=-(2**31), le=2**32 - 1)
    stdout: Said | None = None
    stderr: Said | None = None
    error: Said | None = None
    status: Literal["completed", "failed", "cancelled"] | None = None
    error_code: int | None = Field(None, ge=0, le=INT32)
    truncated: Truncated | None = None
    usage: Usage | None = None
    signal: Word | None = None
    reason: Word | None = None


class ReleaseCall(OfAttempt):
    reason: Said | None = None


# From users.

MOST_DEPENDENCIES = 1000  # of one task
MOST_LABELS = 32
LABEL = r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,62})$"
EXECUTOR = r"^([a-z][a-z0-9_]{0,63})?$"
_RESOURCES = {
    "type": "object",
    "properties": {
        "gpus": {"type": "integer", "minimum": 0, "maximum": resources.MOST_GPUS},
        "gpu": {"type": "string", "maxLength": 128, "description": "part of the model's name"},
        "gpu_memory": {"type": ["integer", "string"], "description": "bytes, or such as 20GiB"},
        "cpus": {"type": "number", "minimum": 0, "maximum": resources.MOST_CPUS},
        "memory": {"type": ["integer", "string"], "description": "bytes, or such as 8GiB"},
    },
    "additionalProperties": False,
}


def _asked(value: object) -> object:
    """In the one form that is stored: sizes in bytes, nothing that is not asked for."""
    try:
        return resources.as_json(resources.read(value))
    except ValueError as error:
        raise _wrong(str(error).removeprefix("resources: ")) from None


def _each_once(ids: list[str]) -> list[str]:
    for place, task_id in enumerate(ids):
        if task_id in ids[:place]:
            raise _wrong(f"names {task_id} twice")
    return ids


class Description(FromUser):
    """A task as somebody asks for it."""

    id: Annotated[str, Field(pattern=ID)] | None = Field(None, description="a UUID if not given")
    name: Annotated[Plain, Field(max_length=255)] = ""
    type: Literal["shell", "python", "script"] = "shell"
    command: Annotated[Plain, Field(min_length=1)]
    args: list[Plain] = Field(default_factory=list, max_length=100_000)
    exec: bool = Field(False, description="run [command, *args] directly even with no args")
    workdir: Annotated[Plain, Field(max_length=4095), AfterValidator(_absolute)] = ""
    env: dict[Annotated[str, AfterValidator(_variable)], Plain] = Field(default_factory=dict)
    timeout: Seconds = Field(3600, gt=0, le=YEARS, description="seconds")
    priority: int = Field(5, ge=1, le=10, description="1 is the most urgent")
    max_retries: int = Field(0, ge=0, le=1000)
    retry_delay: Seconds = Field(60, ge=0, le=YEARS, description="seconds; 0 means 60")
    machine_id: Annotated[Plain, Field(max_length=255)] = Field(
        "", description='the only machine that may run it; "" = any'
    )
    group_id: Annotated[Plain, Field(max_length=255)] = ""
    disconnect_grace: Seconds | None = Field(
        None, ge=0, le=YEARS, description="seconds after its lease; null = the server's setting"
    )
    on_lost_contact: Literal["keep", "stop"] = "keep"
    depends_on: Annotated[
        list[Annotated[str, Field(pattern=ID)]],
        Field(max_length=MOST_DEPENDENCIES),
        AfterValidator(_each_once),
    ] = Field(default_factory=list, description="tasks that must have completed before it runs")
    user: Annotated[Plain, Field(max_length=255)] = Field("", description="who submits it")
    labels: dict[Annotated[str, Field(pattern=LABEL)], Annotated[Plain, Field(max_length=255)]] = (
        Field(
            default_factory=dict, max_length=MOST_LABELS, description="that its machine must have"
        )
    )
    resources: Annotated[dict[str, Any], BeforeValidator(_asked), WithJsonSchema(_RESOURCES)] = (
        Field(default_factory=dict)
    )
    executor: Annotated[str, Field(pattern=EXECUTOR)] = Field(
        "", description='the plugin that must run it; "" = the machine\'s first'
    )

    @model_validator(mode="after")
    def _bounded_needs(self) -> "Description":
        if len(self.needs.encode()) > needs.MOST_BYTES:
            raise _wrong(
                f"labels, resources and executor are at most {needs.MOST_BYTES} bytes together"
            )
        return self

    @property
    def needs(self) -> str:
        return needs.written(self.labels, resources.read(self.resources), self.executor)


class CancelCall(FromUser):
    reason: Annotated[Plain, Field(max_length=1000)] = ""


class Nothing(FromUser):
    """No keys."""


class ListQuery(FromUser):
    status: list[
        Literal[
            "pending",
            "assigned",
            "running",
            "preempted",
            "suspended",
            "completed",
            "failed",
            "cancelled",
        ]
    ] = Field(default_factory=list, max_length=16)
    machine: Annotated[Plain, Field(max_length=255)] = ""
    user: Annotated[Plain, Field(max_length=255)] = ""
    name: Annotated[Plain, Field(max_length=255)] = Field("", description="a prefix")
    after: Annotated[str, Field(max_length=40)] = Field("", description="next_cursor of a page")
    limit: int = Field(50, ge=1, le=200)


class LogsQuery(FromUser):
    run: int | None = Field(None, ge=1, le=INT32, description="the last one if not given")
    stream: Literal["stdout", "stderr"] = "stdout"
    offset: int = Field(0, ge=0, le=INT64, description="bytes")
    wait_sec: int = Field(0, ge=0, le=60, description="answered at once while nothing is streamed")


def key_problem(key: str) -> str:
    """What is wrong with an Idempotency-Key; "" if nothing."""
    if re.fullmatch(r"[!-~]([ -~]{0,253}[!-~])?", key):
        return ""
    return "Idempotency-Key: 1 to 255 printable ASCII characters are needed"
