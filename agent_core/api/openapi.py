"""An OpenAPI 3.1 document of a route table, made of the very models that validate."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from agent_core.api.http import Endpoint
from agent_core.api.wire import Code, Json, meaning

REF: Final = "#/components/schemas/{model}"
_ALWAYS: Final = (Code.INTERNAL, Code.FULL)


class Refusal(BaseModel):
    """Every answer that is not a success: `code` is a business code, never 0."""

    model_config = ConfigDict(strict=True)

    code: int
    message: str
    data: dict[str, Any] | None = Field(description="what is needed to do better; mostly null")


def document(
    endpoints: Sequence[Endpoint], *, title: str, version: str, schemes: dict[str, Json]
) -> dict[str, Json]:
    """The document; `schemes` are the security schemes that endpoints name."""
    models: set[type[BaseModel]] = {Refusal}
    for endpoint in endpoints:
        models |= {model for model in (endpoint.body, endpoint.answer) if model is not None}
    ordered = sorted(models, key=lambda model: model.__name__)
    names, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=REF
    )
    refs: dict[type[BaseModel], Json] = {model: names[model, "validation"] for model in ordered}
    paths: dict[str, dict[str, Json]] = {}
    for endpoint in endpoints:
        operation = _operation(endpoint, refs)
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": definitions["$defs"], "securitySchemes": schemes},
    }


def _operation(endpoint: Endpoint, refs: dict[type[BaseModel], Json]) -> dict[str, Json]:
    words = [*re.findall(r"\w+", endpoint.path.removeprefix("/api/v1")), endpoint.method.lower()]
    operation: dict[str, Any] = {
        "operationId": "_".join(words),
        "summary": endpoint.summary,
        "tags": [endpoint.tag] if endpoint.tag else [],
        "parameters": _parameters(endpoint),
        "responses": {str(endpoint.status): _success(endpoint, refs), **_refusals(endpoint, refs)},
        "security": [{name: []} for name in endpoint.schemes],
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": not endpoint.body_optional,
            "content": {"application/json": {"schema": refs[endpoint.body]}},
        }
    return operation


def _parameters(endpoint: Endpoint) -> list[Json]:
    path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", endpoint.path)
    ]
    headers = [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
        for name in endpoint.headers
    ]
    query = []
    if endpoint.query is not None:
        schema = endpoint.query.model_json_schema(ref_template=REF)
        for name, field in schema["properties"].items():
            query.append({"name": name, "in": "query", "required": False, "schema": field})
    return [*path, *headers, *query]


def _success(endpoint: Endpoint, refs: dict[type[BaseModel], Json]) -> Json:
    if endpoint.answer is None:
        schema: Json = {"type": "object"}
    else:
        schema = {
            "type": "object",
            "required": ["code", "message", "data"],
            "properties": {
                "code": {"const": 0},
                "message": {"type": "string"},
                "data": refs[endpoint.answer],
            },
        }
    return {
        "description": HTTPStatus(endpoint.status).phrase,
        "content": {"application/json": {"schema": schema}},
    }


def _refusals(endpoint: Endpoint, refs: dict[type[BaseModel], Json]) -> dict[str, Json]:
    codes = [*endpoint.refusals, *_ALWAYS]
    if endpoint.schemes:
        codes.append(Code.NOT_AUTHORISED)
    if endpoint.body is not None:
        codes += [Code.INVALID, Code.TOO_LARGE]
    if endpoint.query is not None:
        codes.append(Code.INVALID)
    if "{" in endpoint.path:
        codes.append(Code.NO_SUCH_TASK)
    by_status: dict[int, set[int]] = {}
    for code in codes:
        by_status.setdefault(meaning(code).http, set()).add(int(code))
        if code is Code.NOT_AUTHORISED:
            by_status.setdefault(403, set()).add(int(code))
    return {
        str(status): {
            "description": f"code {', '.join(map(str, sorted(codes)))}",
            "content": {"application/json": {"schema": refs[Refusal]}},
        }
        for status, codes in sorted(by_status.items())
    }
