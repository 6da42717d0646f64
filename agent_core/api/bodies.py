"""What a request says, read within limits and strictly, and every objection to it in words."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from agent_core.api.wire import Code, Json, meaning

M = TypeVar("M", bound=BaseModel)
PROBLEMS_TOLD: Final = 5  # of one body
_INTEGER = re.compile(r"-?[0-9]{1,19}\Z")
_WORDS: Final = {
    "int_type": "a whole number is needed, without quotes or a point",
    "int_from_float": "a whole number is needed, without a point",
    "string_type": "text is needed",
    "bool_type": "true or false is needed",
    "float_type": "a number is needed",
    "missing": "missing; it must be given",
    "model_type": "a JSON object is needed",
    "dict_type": "a JSON object is needed",
    "list_type": "a JSON list is needed",
    "tuple_type": "a JSON list is needed",
    "string_unicode": "text without half surrogate pairs is needed",
}


class Problem(Exception):
    """An answer that is not a success: business code, words, and the HTTP status if not usual."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        data: Json = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.data = data  # what the caller needs to do better
        self.message = message
        self.status = status or meaning(code).http
        self.headers = headers or {}


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, never more than `limit` bytes of it in memory. Raises Problem."""
    # Answered at once; uvicorn throws the rest away as it comes, so that the client, which reads
    # only when it has sent everything, sees this answer and no reset.
    too_large = Problem(
        Code.TOO_LARGE,
        f"body: larger than {limit} bytes, which is the most that is taken here; send less at once",
    )
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def parse_body(model: type[M], raw: bytes) -> M:
    """Strict JSON, then the model. Raises Problem naming the field and what would be right."""
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        if "recursion" in str(error):
            raise Problem(Code.TOO_LARGE, "body: nested too deep; 200 levels are taken") from None
        what = "empty" if not raw else f"not JSON ({error})"
        raise Problem(Code.INVALID, f"body: {what}; one JSON object in UTF-8 is needed") from None
    if model.model_config.get("extra") == "forbid":
        _no_duplicates(raw)
    return validate(model, value)


def parse_query(model: type[M], pairs: Iterable[tuple[str, str]]) -> M:
    """Query parameters by the model; a name twice is a list. Raises Problem."""
    found: dict[str, Json] = {}
    for name, text in pairs:
        value: Json = int(text) if _INTEGER.match(text) and _takes_int(model, name) else text
        if _takes_list(model, name):
            found.setdefault(name, []).append(value)
        elif name in found:
            raise Problem(Code.INVALID, f"{name}: given twice; once is right")
        else:
            found[name] = value
    return validate(model, found)


def validate(model: type[M], value: Json) -> M:
    """The model of a parsed value. Raises Problem."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Problem(Code.INVALID, in_words(error, model)) from None


def in_words(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first few things that are wrong, each with its field."""
    details = error.errors(include_url=False, include_context=True)[:PROBLEMS_TOLD]
    return "; ".join(_say(model, each) for each in details)


def _takes_int(model: type[BaseModel], name: str) -> bool:
    info = model.model_fields.get(name)
    return info is not None and info.annotation in (int, int | None)


def _takes_list(model: type[BaseModel], name: str) -> bool:
    info = model.model_fields.get(name)
    return info is not None and "list[" in str(info.annotation)


def _no_duplicates(raw: bytes) -> None:
    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise Problem(Code.INVALID, f"{twice[:80]}: given twice in one object; once is right")
        return keys

    json.loads(raw, object_pairs_hook=unique)


def _say(model: type[BaseModel] | None, detail: ErrorDetails) -> str:
    place = ".".join(str(part)[:80] for part in detail["loc"] if part != "[key]") or "body"
    if detail["type"] == "extra_forbidden" and model is not None:
        known = sorted(model.model_fields)
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near and len(detail["loc"]) == 1 else ""
        return f"{place}: no such key; {hint}Known here: {', '.join(known)}"
    words = _WORDS.get(detail["type"], "")
    if not words:
        words = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        words = words.replace("String should", "must").replace("Dictionary should", "must")
    given = detail["input"]
    shown = detail["type"] != "missing" and isinstance(given, str | int | float | None)
    return f"{place}: {words}" + (f" (given: {_short(given)})" if shown else "")


def _short(given: Json) -> str:
    text = json.dumps(given, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."
