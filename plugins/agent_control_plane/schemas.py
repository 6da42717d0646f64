"""What requests may hold: strict models that validate at the door and make the OpenAPI document."""

import base64
import binascii
import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)
from pydantic_core import PydanticCustomError

from agent_core.api import resources
from agent_core.api.wire import REPLACEMENT

ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
METRICS_LIMIT = 64 * 1024  # bytes of JSON
INT32 = 2**31 - 1
INT64 = 2**63 - 1


class FromAgent(BaseModel):
    """Unknown keys are ignored, or an agent could not be upgraded before its server."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class FromUser(BaseModel):
    """Unknown keys are refused with the nearest known name."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{words}", {"words": message})


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise wrong("must not hold a NUL character: no program could be given it")
    return text


def _replace_nul(text: str) -> str:
    return text.replace("\0", REPLACEMENT)


def cut_message(text: str) -> str:
    return text.replace("\0", REPLACEMENT)[:500]


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(value, allow_nan=False))
    except ValueError:
        raise wrong("must hold finite numbers only") from None
    if size > METRICS_LIMIT:
        raise wrong(f"must be at most {METRICS_LIMIT} bytes as JSON")
    return value


Plain = Annotated[str, AfterValidator(_no_nul)]
Said = Annotated[str, AfterValidator(_replace_nul)]  # by an agent: NUL becomes U+FFFD
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


def decoded(text: object) -> object:
    """Bytes of base64 text; anything else is left for the type to refuse."""
    if not isinstance(text, str):
        return text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise wrong("base64 is needed") from None


Base64 = Annotated[bytes, BeforeValidator(decoded, json_schema_input_type=str)]


class LogCall(OfAttempt):
    run_no: int = Field(1, ge=1, le=INT32)
    stream: Literal["stdout", "stderr"]
    offset: int = Field(ge=0, le=INT64, description="of the first byte, as the run printed it")
    data: Base64 = Field(b"", description="base64")
    dropped: int = Field(0, ge=0, le=INT64, description="bytes directly before offset, gone")
    eof: bool = False
    sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="with eof: over the bytes that were kept"
    )


# From users.


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
    wait_sec: int = Field(0, ge=0, le=60, description="seconds to wait while there is no more")


def key_problem(key: str) -> str:
    """What is wrong with an Idempotency-Key; "" if nothing."""
    if re.fullmatch(r"[!-~]([ -~]{0,253}[!-~])?", key):
        return ""
    return "Idempotency-Key: 1 to 255 printable ASCII characters are needed"
