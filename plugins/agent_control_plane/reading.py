"""A piece of what a run wrote, read from any offset: while it runs, and of what was kept of it.

Offsets count the bytes that the run printed. What is gone between head and tail is passed over,
so they mean the same bytes for whoever follows a run beyond its end.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from agent_control_plane import history, schemas
from agent_control_plane.logs import Part
from agent_control_plane.outputs import cut, marked, parted
from agent_control_plane.states import FINAL, State
from agent_control_plane.tables import outputs, pieces, runs, streams
from agent_control_plane.views import from_json
from agent_core.api.http import Problem
from agent_core.api.wire import Code, Json, plain_text

SHOWN: Final = 8 * 2**20  # bytes of a stream with its task
PIECE: Final = 2**20  # bytes of output in one answer
_CUT = re.compile(  # a character that has only begun
    rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z"
)
_TEXT = select(outputs.c.data).where(
    (outputs.c.attempt_id == bindparam("attempt")) & (outputs.c.stream == bindparam("stream"))
)
_EARLIER = {
    name: select(runs.c[name]).where(
        (runs.c.attempt_id == bindparam("attempt")) & (runs.c.run_no == bindparam("run"))
    )
    for name in ("stdout", "stderr")
}
_OF_STREAM = (
    (pieces.c.attempt_id == bindparam("attempt"))
    & (pieces.c.run_no == bindparam("run"))
    & (pieces.c.stream == bindparam("stream"))
)
_PIECES = (
    select(pieces.c.starts, pieces.c.data)
    .where(_OF_STREAM & (pieces.c.ends > bindparam("offset")))
    .order_by(pieces.c.starts)
)
_STREAM = select(streams.c.next_offset, streams.c.gone).where(
    (streams.c.attempt_id == bindparam("attempt"))
    & (streams.c.run_no == bindparam("run"))
    & (streams.c.stream == bindparam("stream"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A stream of a run from some offset on, as far as it is there."""

    parts: Sequence[Part]
    end: int  # bytes printed so far, as far as known
    over: bool  # nothing will be added
    lost: int | None = 0  # bytes dropped nobody knows where; None = some, number unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The run whose output is asked for."""

    attempt_id: str | None
    run_no: int  # within the attempt
    over: bool
    earlier: bool
    truncated: Mapping[str, int | None]


def output(
    connection: Connection, task: Mapping[str, Any], query: schemas.LogsQuery
) -> dict[str, Json]:
    """A piece of what one run wrote, cut between characters where it is text."""
    run = choose(connection, task, query.run)
    kept = _kept(connection, run, query.stream, query.offset)
    told = _piece(kept, query.offset)
    digest = None
    if told["eof"]:
        whole = kept if query.offset == 0 else _kept(connection, run, query.stream, 0)
        digest = hashlib.sha256(b"".join(part.data for part in whole.parts)).hexdigest()
    return {**told, "sha256": digest}


def choose(connection: Connection, task: Mapping[str, Any], number: int | None) -> Chosen:
    """The run of that number, counted over all attempts; the last one without a number."""
    found = history.of_task(connection, task["id"])
    final = State(task["status"]) in FINAL
    if number is not None and number > len(found) and (final or number > len(found) + 1):
        raise Problem(Code.INVALID, f"run: {number} is not there; {len(found)} began so far")
    run = found[-1] if found and number is None else None
    if number is not None and number <= len(found):
        run = found[number - 1]
    if run is None:  # one to come; or a task that never ran, and said something all the same
        following = [each for each in found if each["attempt_id"] == task["attempt_id"]]
        return Chosen(
            attempt_id=task["attempt_id"],
            run_no=following[-1]["run_no"] + 1 if following else 1,
            over=final,
            earlier=False,
            truncated=from_json(task["truncated"]) or {},
        )
    return Chosen(
        attempt_id=run["attempt_id"],
        run_no=run["run_no"],
        over=run["ended_at"] is not None,
        earlier=run["earlier"],
        truncated=from_json(run["truncated"]) or {},
    )


def result(connection: Connection, task: Mapping[str, Any]) -> dict[str, str]:
    """All that was kept of the run that ended a task, as text, gaps marked."""
    if State(task["status"]) not in FINAL or task["attempt_id"] is None:
        return {"stdout": "", "stderr": ""}
    run = choose(connection, task, None)
    return {
        stream: plain_text(_shown(_kept(connection, run, stream, 0)))
        for stream in ("stdout", "stderr")
    }


def _shown(kept: Kept) -> bytes:
    text, dropped = marked(kept.parts)
    return text if len(text) <= SHOWN else cut(text, dropped, SHOWN)[0]


def _kept(connection: Connection, run: Chosen, stream: str, offset: int) -> Kept:
    which = {"attempt": run.attempt_id, "run": run.run_no, "stream": stream}
    text: bytes | None = None
    if run.over and run.earlier:
        text = connection.execute(_EARLIER[stream], which).scalar()
    elif run.over:
        text = connection.execute(_TEXT, which).scalar()
    lost = run.truncated.get(stream, 0)
    if text is not None:
        return _parted(bytes(text), lost)
    row = connection.execute(_STREAM, which).first()
    if row is None:
        return Kept(parts=(), end=0, over=run.over, lost=lost if run.over else 0)
    found: list[Part] = []
    size = 0
    for each in connection.execute(_PIECES, {**which, "offset": offset}):
        found.append(Part(each.starts, bytes(each.data)))
        size += len(each.data)
        if size > PIECE and not run.over:
            break
    return Kept(parts=found, end=row.next_offset, over=run.over)


def _parted(text: bytes, dropped: int | None) -> Kept:
    """A result: its head, and its tail at the offsets that it was printed at."""
    head, tail = parted(text, dropped)
    if not tail:
        return Kept(parts=(Part(0, text),), end=len(text), over=True, lost=dropped)
    starts = len(head) + (dropped or 0)
    parts = (Part(0, head), Part(starts, tail))
    return Kept(parts=parts, end=starts + len(tail), over=True)


def _piece(kept: Kept, asked: int) -> dict[str, Json]:
    if asked > kept.end and not (kept.over and kept.lost != 0):
        raise Problem(Code.INVALID, f"offset: {asked} is beyond the end, {kept.end}")
    offset, data = _first(kept, asked)
    end = offset + len(data)
    if end < kept.end or not kept.over:
        data = _CUT.sub(b"", data) or (data if end < kept.end else b"")
        end = offset + len(data)
    eof = kept.over and end >= kept.end
    try:
        text, encoding = data.decode(), "utf-8"
    except UnicodeDecodeError:
        text, encoding = "\0", ""
    if "\0" in text:
        text, encoding = base64.b64encode(data).decode(), "base64"
    dropped: int | None = offset - asked
    if eof and kept.lost != 0:
        dropped = kept.lost
    return {
        "data": text,
        "encoding": encoding,
        "offset": offset,
        "next_offset": end,
        "eof": eof,
        "dropped": dropped,
    }


def _first(kept: Kept, asked: int) -> tuple[int, bytes]:
    """From the offset on, or from the next byte that is there, as far as nothing is missing."""
    offset, data = asked, bytearray()
    for part in kept.parts:
        ends = part.starts + len(part.data)
        if ends <= asked:
            continue
        if not data:
            offset = max(asked, part.starts)
        elif part.starts != offset + len(data):
            break
        data += part.data[max(0, offset + len(data) - part.starts) :]
        if len(data) >= PIECE:
            break
    if not data:  # all that is left is gone, or nothing is
        offset = max(asked, kept.end) if kept.over else asked
    return offset, bytes(data[:PIECE])
