"""A task as somebody asks for it: what it may hold, and the one form in which it is stored."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from agent_control_plane import needs
from agent_control_plane.schemas import ID, FromUser, Plain, wrong
from agent_core.api import resources

YEARS = 10 * 366 * 86400  # seconds; the longest time that anything is asked to take
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


def _absolute(path: str) -> str:
    if path and not path.startswith("/"):
        raise wrong('must be an absolute path, or "" for a private scratch directory of the run')
    return path


def _variable(name: str) -> str:
    if not name or "=" in name or "\0" in name:
        raise wrong("the name of a variable must not be empty, nor hold = or a NUL character")
    return name


def _seconds(value: object) -> object:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        raise wrong(f"whole seconds are written without a point: {int(value)}")
    return value


def _asked(value: object) -> object:
    """In the one form that is stored: sizes in bytes, nothing that is not asked for."""
    try:
        return resources.as_json(resources.read(value))
    except ValueError as error:
        raise wrong(str(error).removeprefix("resources: ")) from None


def _each_once(ids: list[str]) -> list[str]:
    for place, task_id in enumerate(ids):
        if task_id in ids[:place]:
            raise wrong(f"names {task_id} twice")
    return ids


Seconds = Annotated[float, BeforeValidator(_seconds)]


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
            raise wrong(
                f"labels, resources and executor are at most {needs.MOST_BYTES} bytes together"
            )
        return self

    @property
    def needs(self) -> str:
        return needs.written(self.labels, resources.read(self.resources), self.executor)
