"""What is told of an event: the body of its own call, or its entry in a batch."""

import math
import re

from pydantic_core import to_json

from agent_core import Event, EventKind, Json, Key, Outcome, Reason, wire
from agent_core_plugins.server_client.http import encode

ERROR_LIMIT = 4000  # characters
SMALLEST_BODY = 64 * 2**10  # bytes: a server that takes no more than this takes nothing
_USAGE = ("wall_s", "user_s", "system_s", "max_rss_bytes")
_SILENT = ("error", "error_code", "signal", "usage")  # say nothing by being empty
_GONE = rb"(?:[0-9]{1,20}|an unknown number of) bytes dropped"
_MARKER = re.compile(rb"\n\.\.\.\[truncated, " + _GONE + rb"\]\n")  # and nothing that looks like it
_UNKNOWN = Outcome(reason=Reason.LOST, error="no outcome is on record")


def entry(event: Event, limit: int) -> bytes:
    """The event as JSON for a batch, its output cut until it is no longer than `limit` bytes."""
    fields: dict[str, Json] = {
        "seq": event.seq,
        "kind": event.kind.value,
        "task_id": event.key.task_id,
        "attempt_id": event.key.attempt_id,
        "run_no": event.run_no,
        "at": wire.rfc3339(event.at),
    }
    if event.kind is EventKind.START:
        fields["started_at"] = wire.rfc3339(event.started_at)
        return to_json(fields)
    outcome = event.outcome or _UNKNOWN
    fields |= {"exit_code": outcome.exit_code, **_extended(outcome), "error": error_of(outcome)}
    if event.kind is EventKind.RUN:
        del fields["status"]  # the task has another run before it
        fields["next_run_at"] = wire.rfc3339(event.next_run_at)
    said = {name: value for name, value in fields.items() if value or name not in _SILENT}
    return _with_output(said, outcome, limit)


def passing(kind: str, key: Key, at: float, **fields: Json) -> bytes:
    """An event that is no part of the record: it has no number, and a newer one replaces it."""
    known: dict[str, Json] = {"seq": 0, "kind": kind, "task_id": key.task_id}
    known |= {"attempt_id": key.attempt_id, "at": wire.rfc3339(at)}
    return to_json(known | fields)


def _with_output(fields: dict[str, Json], outcome: Outcome, limit: int) -> bytes:
    cap = max(len(outcome.stdout), len(outcome.stderr))
    while True:
        stdout, dropped_stdout = cut(outcome.stdout, outcome.dropped_stdout, cap)
        stderr, dropped_stderr = cut(outcome.stderr, outcome.dropped_stderr, cap)
        output: dict[str, Json] = {}
        if stdout:
            output |= wire.output_fields("stdout", stdout)
        if stderr:
            output |= wire.output_fields("stderr", stderr)
        if dropped_stdout != 0 or dropped_stderr != 0:
            output["truncated"] = {"stdout": dropped_stdout, "stderr": dropped_stderr}
        found = to_json(fields | output)
        if cap == 0 or len(found) <= limit:
            return found
        cap = _less(cap, stdout, stderr)


def complete_fields(event: Event, *, extended: bool, limit: int) -> dict[str, Json]:
    """The body of a complete, cut until its JSON is no longer than `limit` bytes.

    `extended` is for servers that named their capabilities; another one judges by exit_code alone.
    """
    outcome = event.outcome or _UNKNOWN
    fields: dict[str, Json] = {
        "attempt_id": event.key.attempt_id,
        "exit_code": outcome.exit_code if extended else plain_exit_code(outcome),
        "error": error_of(outcome),
    }
    if extended:
        fields |= _extended(outcome)
    cap = limit
    while True:
        stdout, dropped_stdout = cut(outcome.stdout, outcome.dropped_stdout, cap)
        stderr, dropped_stderr = cut(outcome.stderr, outcome.dropped_stderr, cap)
        fields |= {"stdout": wire.plain_text(stdout), "stderr": wire.plain_text(stderr)}
        if extended:
            fields["truncated"] = {"stdout": dropped_stdout, "stderr": dropped_stderr}
        if cap == 0 or len(encode(fields)) + 1024 <= limit:  # the agent's id comes on top
            return fields
        cap = _less(cap, stdout, stderr)


def _less(cap: int, stdout: bytes, stderr: bytes) -> int:
    return min(cap, max(len(stdout), len(stderr))) * 3 // 4 if cap > 256 else 0


def plain_exit_code(outcome: Outcome) -> int:
    """An integer that is 0 for success alone, as a server that looks at nothing else needs it."""
    if outcome.success:
        return 0
    if outcome.reason in {Reason.EXITED, Reason.SIGNAL, Reason.TIMEOUT, Reason.OOM}:
        default = 124 if outcome.reason is Reason.TIMEOUT else -1
        return outcome.exit_code or default
    return -1


def cut(output: bytes, dropped: int | None, cap: int) -> tuple[bytes, int | None]:
    """Head and tail of an output within `cap` bytes, and how many bytes of it are gone in all."""
    if len(output) <= cap:
        return output, dropped
    head = output[: cap // 2]
    tail = output[len(output) - (cap - cap // 2) :]
    middle = output[len(head) : len(output) - len(tail)]
    gone = len(middle)
    if dropped != 0 and (marker := _MARKER.search(middle)):
        gone -= len(marker[0])  # an earlier cut's words were never output
    dropped = None if dropped is None else dropped + gone
    number = "an unknown number of" if dropped is None else dropped
    return head + f"\n...[truncated, {number} bytes dropped]\n".encode() + tail, dropped


def error_of(outcome: Outcome | None) -> str:
    if outcome is None or not outcome.error:
        return ""
    return wire.plain_text(outcome.error.encode("utf-8", "surrogatepass"))[:ERROR_LIMIT]


def _extended(outcome: Outcome) -> dict[str, Json]:
    usage = outcome.usage
    cancelled = outcome.reason is Reason.CANCELLED
    ended = "completed" if outcome.success else "cancelled" if cancelled else "failed"
    return {
        "status": ended,
        "reason": outcome.reason.value,
        "error_code": int(outcome.error_code),
        "signal": outcome.signal,
        "usage": usage and {field: _finite(getattr(usage, field)) for field in _USAGE},
    }


def _finite(value: float | None) -> float | None:
    """JSON has no word for the others, and a result must not wait for ever because of one."""
    return value if value is not None and math.isfinite(value) else None
