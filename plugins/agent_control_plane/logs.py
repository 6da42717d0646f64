"""Output that comes while a run goes on: kept as head and tail, until its result is there."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from agent_control_plane import schemas
from agent_control_plane.calls import lost
from agent_control_plane.ledger import load
from agent_control_plane.messages import Written, say
from agent_control_plane.states import Attempt
from agent_control_plane.tables import attempts, pieces, streams
from agent_core.api.http import Problem
from agent_core.api.wire import Code, Json

PIECE_LIMIT: Final = 4 * 2**20  # bytes that come at once
JOINED: Final = 32 * 1024  # bytes; a smaller piece is joined to the one before it

_WHICH_STREAM = (
    (streams.c.attempt_id == bindparam("_attempt"))
    & (streams.c.run_no == bindparam("_run"))
    & (streams.c.stream == bindparam("_stream"))
)
_WHICH_PIECES = (
    (pieces.c.attempt_id == bindparam("_attempt"))
    & (pieces.c.run_no == bindparam("_run"))
    & (pieces.c.stream == bindparam("_stream"))
)
_STREAM = select(streams).where(_WHICH_STREAM)
_LAST = (
    select(pieces.c.starts, pieces.c.ends, pieces.c.data)
    .where(_WHICH_PIECES & (pieces.c.ends - pieces.c.starts < JOINED))
    .where(pieces.c.ends == bindparam("ends"))
    .order_by(pieces.c.starts.desc())
    .limit(1)
)
_JOIN = (
    update(pieces)
    .where(_WHICH_PIECES & (pieces.c.starts == bindparam("_starts")))
    .values(ends=bindparam("ends"), data=bindparam("data"))
)
_MIDDLE = delete(pieces).where(
    _WHICH_PIECES & (pieces.c.starts >= bindparam("head")) & (pieces.c.ends <= bindparam("tail"))
)
_ALL = select(pieces.c.starts, pieces.c.data).where(_WHICH_PIECES).order_by(pieces.c.starts)
_MOVED = (
    update(streams)
    .where(_WHICH_STREAM)
    .values(next_offset=bindparam("next"), gone=bindparam("gone"), eof=bindparam("over"))
)
_NO_PIECES = delete(pieces).where(_WHICH_PIECES)
_NO_STREAM = delete(streams).where(_WHICH_STREAM)
_LOGGED = update(attempts).where(attempts.c.id == bindparam("_attempt")).values(logged=1)


class Part(NamedTuple):
    """Bytes that follow each other."""

    starts: int
    data: bytes


@dataclass(slots=True)
class _Stream:
    """One stream of one run, as far as it has come."""

    which: Mapping[str, Any]
    new: bool
    next_offset: int
    gone: int
    eof: bool


def append(
    connection: Connection, task_id: str, call: schemas.LogCall, now: float, most: int
) -> dict[str, Json] | Problem:
    """What follows what is there already; the rest of it is a repeat.

    A Problem is returned where it changes something: output that is not what its agent kept is
    thrown away, to be sent anew. Raises Problem for a gap, with the offset to go on from.
    """
    task, attempt = load(connection, task_id, call.attempt_id)
    if (effect := lost(task, attempt, call.agent_id)) is not None or attempt is None:
        code, words = (Code.ATTEMPT_LOST, "") if effect is None else (effect.code, effect.message)
        raise Problem(code, words)
    if call.run_no < attempt.run_no or (call.run_no == attempt.run_no and _between(attempt)):
        raise Problem(Code.TASK_FINAL, f"run {call.run_no} is over, another one follows it")
    if len(call.data) > PIECE_LIMIT:
        raise Problem(Code.TOO_LARGE, f"data: at most {PIECE_LIMIT} bytes are taken at once")
    stream = _find(connection, call)
    before = stream.next_offset
    _take(connection, stream, call, most)
    if call.eof and not stream.eof:
        if not _as_kept(connection, stream, call):
            _drop(connection, stream.which)
            words = "sha256: what came is not what its agent kept; send it again from offset 0"
            return Problem(Code.INVALID, words, data={"next_offset": 0})
        stream.eof = True
    _note(connection, stream, task_id)
    if not attempt.logged:
        connection.execute(_LOGGED, {"_attempt": attempt.id})
    watched = task.watched_until is not None and task.watched_until > now
    if watched and (stream.next_offset > before or call.eof):
        say(connection, Written(task_id))
    return {"next_offset": stream.next_offset, "watched": watched}


def _between(attempt: Attempt) -> bool:
    return attempt.run_no > 0 and attempt.started_at is None


def _find(connection: Connection, call: schemas.LogCall) -> _Stream:
    which = {"_attempt": call.attempt_id, "_run": call.run_no, "_stream": call.stream}
    row = connection.execute(_STREAM, which).first()
    if row is None:
        return _Stream(which, True, 0, 0, False)
    return _Stream(which, False, row.next_offset, row.gone, bool(row.eof))


def _take(connection: Connection, stream: _Stream, call: schemas.LogCall, most: int) -> None:
    """Raises Problem if bytes are missing that nobody said were dropped."""
    if call.offset - call.dropped > stream.next_offset:
        raise Problem(
            Code.INVALID,
            f"offset: {call.offset} leaves a gap; the next byte here is {stream.next_offset}",
            data={"next_offset": stream.next_offset},
        )
    data = call.data[max(0, stream.next_offset - call.offset) :]
    starts = max(call.offset, stream.next_offset)
    if call.offset + len(call.data) <= stream.next_offset or stream.eof:
        return  # told before
    stream.gone += starts - stream.next_offset
    stream.next_offset = starts + len(data)
    if data:
        _put(connection, stream.which, starts, data)
    half = most // 2
    if stream.next_offset > 2 * half:
        tail = stream.next_offset - half
        connection.execute(_MIDDLE, {**stream.which, "head": half, "tail": tail})


def _put(connection: Connection, which: Mapping[str, Any], starts: int, data: bytes) -> None:
    last = connection.execute(_LAST, {**which, "ends": starts}).first() if starts else None
    ends = starts + len(data)
    if last is None:
        row = {
            "attempt_id": which["_attempt"],
            "run_no": which["_run"],
            "stream": which["_stream"],
            "starts": starts,
            "ends": ends,
            "data": data,
        }
        connection.execute(insert(pieces), row)
        return
    joined = bytes(last.data) + data
    connection.execute(_JOIN, {**which, "_starts": last.starts, "ends": ends, "data": joined})


def _as_kept(connection: Connection, stream: _Stream, call: schemas.LogCall) -> bool:
    """Whether what is here is what its agent kept; not to be known where bytes are gone."""
    if call.sha256 is None or stream.gone:
        return True
    digest, size = hashlib.sha256(), 0
    for row in connection.execute(_ALL, stream.which):
        digest.update(row.data)
        size += len(row.data)
    if size < stream.next_offset:
        return True  # we dropped some ourselves
    return hmac.compare_digest(digest.hexdigest(), call.sha256.lower())


def _note(connection: Connection, stream: _Stream, task_id: str) -> None:
    if stream.new:
        row = {
            "attempt_id": stream.which["_attempt"],
            "run_no": stream.which["_run"],
            "stream": stream.which["_stream"],
            "task_id": task_id,
            "next_offset": stream.next_offset,
            "gone": stream.gone,
            "eof": int(stream.eof),
        }
        connection.execute(insert(streams), row)
        return
    moved = {"next": stream.next_offset, "gone": stream.gone, "over": int(stream.eof)}
    connection.execute(_MOVED, {**stream.which, **moved})


def _drop(connection: Connection, which: Mapping[str, Any]) -> None:
    connection.execute(_NO_PIECES, which)
    connection.execute(_NO_STREAM, which)


def collected(connection: Connection, attempt_id: str, run_no: int, stream: str) -> list[Part]:
    """All that is here of a stream."""
    which = {"_attempt": attempt_id, "_run": run_no, "_stream": stream}
    return [Part(row.starts, bytes(row.data)) for row in connection.execute(_ALL, which)]


def replaced(connection: Connection, attempt_id: str, run_no: int, stream: str) -> None:
    """What is kept of it has its place: what came while it ran is not needed any more."""
    _drop(connection, {"_attempt": attempt_id, "_run": run_no, "_stream": stream})
