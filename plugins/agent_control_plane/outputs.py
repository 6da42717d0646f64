"""What runs wrote, as it is kept once they have ended: whole, bounded, and gone with the task."""

import json
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, insert, update

from agent_control_plane import logs, schemas
from agent_control_plane.event_schemas import Ending
from agent_control_plane.logs import Part
from agent_control_plane.rows import insert_all
from agent_control_plane.states import Attempt
from agent_control_plane.tables import outputs, runs

STREAMS: Final = ("stdout", "stderr")
MARKER: Final = b"\n...[truncated, %d bytes dropped]\n"  # as agents put it in
EARLIER_KEPT: Final = 64 * 1024  # bytes of one stream of a run that another one followed
EARLIER_RUNS: Final = 10  # of an attempt, the newest, whose output is kept
RUNS_KEPT: Final = 1000  # of an attempt, the newest

_FORGET_TEXT = (
    update(runs)
    .where(runs.c.attempt_id == bindparam("_attempt"))
    .where(runs.c.run_no <= bindparam("_run"))
    .where(runs.c.stdout.is_not(None) | runs.c.stderr.is_not(None))
    .values(stdout=None, stderr=None)
)
_FORGET_RUN = (
    delete(runs)
    .where(runs.c.attempt_id == bindparam("_attempt"))
    .where(runs.c.run_no <= bindparam("_run"))
)


def told(event: schemas.CompleteCall | Ending, stream: str) -> bytes | None:
    """What an end brings of a stream; None = it says nothing of it."""
    if isinstance(event, Ending):
        data: bytes | None = getattr(event, f"{stream}_base64")
        if data is not None:
            return data
    text: str | None = getattr(event, stream)
    return None if text is None else text.encode()


def end(
    connection: Connection, attempt: Attempt, task_id: str, call: schemas.CompleteCall | Ending
) -> list[dict[str, Any]]:
    """The rows of an attempt's end; they take the place of what came while it ran."""
    run_no = call.run_no if isinstance(call, Ending) else max(attempt.run_no, 1)
    found = []
    for stream in STREAMS:
        if data := told(call, stream):
            if attempt.logged:
                logs.replaced(connection, attempt.id, run_no, stream)
            row = {"attempt_id": attempt.id, "task_id": task_id, "stream": stream, "data": data}
            found.append(row)
    return found


def earlier(connection: Connection, attempt: Attempt, event: Ending) -> dict[str, Any]:
    """The columns of a run that another one follows: its output cut, and how much is missing."""
    dropped: dict[str, int | None] = dict.fromkeys(STREAMS, 0)
    if event.truncated is not None:
        dropped = event.truncated.model_dump()
    found: dict[str, Any] = {}
    for stream in STREAMS:
        data = told(event, stream) or b""
        if attempt.logged:
            if not data:
                parts = logs.collected(connection, attempt.id, event.run_no, stream)
                data, dropped[stream] = marked(parts)
            logs.replaced(connection, attempt.id, event.run_no, stream)
        if len(data) > EARLIER_KEPT:
            data, dropped[stream] = cut(data, dropped[stream])
        found[stream] = data or None
    cut_or_told = event.truncated is not None or any(dropped.values())
    return {**found, "truncated": json.dumps(dropped) if cut_or_told else None}


def marked(parts: Sequence[Part]) -> tuple[bytes, int | None]:
    """Parts as one, what is missing between them marked; None: in more places than one."""
    texts, ends, gaps = [], 0, []
    for part in parts:
        if part.starts > ends:
            gaps.append(part.starts - ends)
            texts.append(MARKER % gaps[-1])
        texts.append(part.data)
        ends = part.starts + len(part.data)
    return b"".join(texts), (sum(gaps) if len(gaps) < 2 else None)


def cut(data: bytes, dropped: int | None, most: int = EARLIER_KEPT) -> tuple[bytes, int | None]:
    """Its head and its tail, and how many bytes are missing between them."""
    head, tail = parted(data, dropped)
    if not tail and dropped:  # nobody knows where those were
        return data[: most // 2] + data[-(most // 2) :], None
    if not tail:
        head, tail = data[: most // 2], data[most // 2 :]
    missing = len(head[most // 2 :]) + len(tail[: -(most // 2)]) + (dropped or 0)
    return head[: most // 2] + MARKER % missing + tail[-(most // 2) :], missing


def parted(data: bytes, dropped: int | None) -> tuple[bytes, bytes]:
    """What stands before and behind the marker; all and nothing where there is none."""
    head, marker, tail = data.partition(MARKER % dropped) if dropped else (data, b"", b"")
    return (head, tail) if marker else (data, b"")


def keep(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if rows:
        insert_all(connection, outputs, rows)


def keep_runs(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Put them on record, and forget the oldest of the same attempts."""
    if not rows:
        return
    connection.execute(insert(runs), rows)
    newest = {row["attempt_id"]: row["run_no"] for row in rows}
    for statement, kept in ((_FORGET_TEXT, EARLIER_RUNS), (_FORGET_RUN, RUNS_KEPT)):
        old = [{"_attempt": a, "_run": n - kept} for a, n in newest.items() if n > kept]
        if old:
            connection.execute(statement, old)
