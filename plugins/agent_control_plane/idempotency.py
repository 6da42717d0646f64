"""Requests that may come again: the same key brings the same answer, never a second effect."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, insert, select

from agent_control_plane.tables import idempotency
from agent_core.api.http import Problem, Reply
from agent_core.api.wire import Code, Json

KEPT: Final = 86400.0  # seconds

_THIS = (
    (idempotency.c.key == bindparam("_key"))
    & (idempotency.c.method == bindparam("_method"))
    & (idempotency.c.path == bindparam("_path"))
)
_FIND = select(idempotency).where(_THIS)
_DROP = delete(idempotency).where(_THIS)


def once(
    connection: Connection,
    request: tuple[str, str, str],
    body: Json,
    now: float,
    effect: Callable[[], Json],
) -> Reply | Problem:
    """The answer of `effect`, or the one that this request got before.

    `request` is key, method and path. A refusal is an answer too, and returned, not raised: what
    is raised is forgotten with its transaction, as every failure of ours (5xx) must be.
    """
    key, method, path = request
    which = {"_key": key, "_method": method, "_path": path}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    row = connection.execute(_FIND, which).mappings().first()
    if row is not None and now - row["created_at"] < KEPT:
        return _again(dict(row), digest)
    if row is not None:
        connection.execute(_DROP, which)
    answer: Reply | Problem
    try:
        data = effect()
        answer = Reply(data=data, status=201)
        told = json.dumps(data)
    except Problem as problem:
        if problem.status >= 500:
            raise
        answer, told = problem, problem.message
    values = {
        "key": key,
        "method": method,
        "path": path,
        "body": digest,
        "code": int(answer.code if isinstance(answer, Problem) else Code.OK),
        "status": answer.status,
        "answer": told,
        "created_at": now,
    }
    connection.execute(insert(idempotency), values)
    return answer


def _again(row: dict[str, Any], digest: str) -> Reply | Problem:
    if row["body"] != digest:
        return Problem(
            Code.CONFLICT,
            "Idempotency-Key: it came with another body before; take a new key for a new request",
        )
    if row["code"] != Code.OK:
        return Problem(Code(row["code"]), row["answer"], status=row["status"])
    return Reply(data=json.loads(row["answer"]), status=row["status"])


def forget(connection: Connection, now: float) -> None:
    connection.execute(delete(idempotency).where(idempotency.c.created_at <= now - KEPT))
