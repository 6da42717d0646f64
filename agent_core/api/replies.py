"""What an answer of the control plane means: a success, a refusal, or no answer at all.

It is judged by the `code` in its body first and by its HTTP status second. A code that is not 0 is
Refused; everything that is no such answer (a proxy's page, a redirect, a body cut off) is
Unreachable, never a success.
"""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import httpx

from agent_core.api.wire import Code, Json
from agent_core.errors import Refused, Unreachable

Task = dict[str, Json]  # as the server wrote it; only `id` and `status` are sure to be text


class NotOurs(Unreachable):
    """It answered in our envelope, and not as a control plane of ours: waiting will not help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Some tasks, newest first, and where the next ones begin."""

    tasks: Sequence[Task]
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """A piece of a run's output."""

    data: bytes
    offset: int  # where it begins; above the one asked for, where what lies between was not kept
    next_offset: int
    eof: bool
    dropped: int | None  # bytes that were not kept; None = some, number unknown
    sha256: str  # with eof: of all bytes kept, in hexadecimal; "" where the server does not say


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why a task does not run, on one machine or on any."""

    machine_id: str  # "" = whatever the machine
    code: str
    text: str


def judge(response: httpx.Response, body: bytes) -> Json:
    """The `data` of a success. Refused for a business code, Unreachable for no answer at all."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    code = answer.get("code") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(code, int) or isinstance(code, bool):
        raise Unreachable(_not_ours(response), retry_after=_retry_after(response))
    if code == Code.NO_ROUTE:
        raise NotOurs(f"{_where(response)} is no address that this control plane knows")
    if code != 0:
        message = answer.get("message") or answer.get("msg") or f"the server answered code {code}"
        raise Refused(str(message), code)
    if not response.is_success:
        raise Unreachable(_not_ours(response), retry_after=_retry_after(response))
    return answer.get("data")


def _where(response: httpx.Response) -> str:
    url = response.request.url
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}{url.path}"


def _not_ours(response: httpx.Response) -> str:
    status = f"HTTP {response.status_code}"
    if response.is_redirect:
        target = response.headers.get("Location", "")[:200]
        return f"{_where(response)} points elsewhere ({status} to {target}); name that URL itself"
    kind = response.headers.get("Content-Type", "no content type").partition(";")[0][:80]
    return (
        f"{_where(response)} gave no answer of a control plane ({status}, {kind}); "
        "see that this is its address, and what stands before it"
    )


def _retry_after(response: httpx.Response) -> float | None:
    words = response.headers.get("Retry-After", "")
    return float(words) if re.fullmatch(r"\d{1,6}", words) else None


def no_answer(wanted: str) -> NotOurs:
    return NotOurs(f"the server's answer is not {wanted}; is it a remotegpu control plane?")


def read_object(data: Json, wanted: str) -> dict[str, Json]:
    if not isinstance(data, dict):
        raise no_answer(wanted)
    return data


def read_task(data: Json) -> Task:
    task = read_object(data, "a task")
    if not isinstance(task.get("id"), str) or not isinstance(task.get("status"), str):
        raise no_answer("a task")
    return task


def read_log(data: dict[str, Json], asked: int) -> Log:
    text, encoding, following = data.get("data"), data.get("encoding"), data.get("next_offset")
    eof, dropped, begin = data.get("eof"), data.get("dropped", 0), data.get("offset", asked)
    digest = data.get("sha256")
    if (
        not isinstance(text, str)
        or not _offset(begin)
        or not _offset(following)
        or not isinstance(eof, bool)
        or not isinstance(dropped, int | None)
        or begin < asked
    ):
        raise no_answer("a piece of output")
    return Log(
        data=_decoded(text, encoding),
        offset=begin,
        next_offset=following,
        eof=eof,
        dropped=dropped,
        sha256=digest if isinstance(digest, str) else "",
    )


def _decoded(text: str, encoding: Json) -> bytes:
    if encoding != "base64":
        return text.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unreachable("the server sent output that is not the base64 it claims") from error


def _offset(value: Json) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_reasons(data: dict[str, Json]) -> list[Reason]:
    reasons = data.get("reasons")
    if not isinstance(reasons, list) or not all(isinstance(each, dict) for each in reasons):
        raise no_answer("an explanation")
    return [
        Reason(
            machine_id=str(each.get("machine_id") or ""),
            code=str(each.get("code") or ""),
            text=str(each.get("text") or ""),
        )
        for each in reasons
    ]
