"""`logs`: what a task wrote, harmless on a terminal and byte for byte in a pipe."""

import base64
import binascii
import codecs
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Final

import click

from agent_core.api.wire import Json
from agent_core.cli.config import connect
from agent_core.cli.ids import id_argument
from agent_core.cli.output import json_option, note, print_json
from agent_core.cli.text import visible_lines, words
from agent_core.errors import Unreachable

if TYPE_CHECKING:
    from agent_core.api.client import Client
    from agent_core.api.replies import Log

STREAMS: Final = ("stdout", "stderr")
TOTAL_LIMIT: Final = 256 * 2**20  # bytes of one stream


@click.command(
    epilog="""\b
    On a terminal control characters are shown (\\x1b), not sent; into a pipe or a file go the bytes
    as the task wrote them.
    \b
    Examples:
      remotegpu logs $ID
      remotegpu logs $ID --stream stdout > result.bin
      remotegpu logs $ID --run 1
    """
)
@id_argument()
@click.option(
    "--stream", type=click.Choice(STREAMS), help="Only this one; default both, each to its own."
)
@click.option("--run", type=click.IntRange(1), help="Of this run; default the last.")
@json_option
def logs(task_id: str, stream: str | None, run: int | None, as_json: bool) -> None:
    """Print what a task wrote: its stdout to stdout, its stderr to stderr."""
    streams = STREAMS if stream is None else (stream,)
    with connect(as_json=as_json) as client:
        if as_json:
            print_json({name: _collected(client, task_id, name, run) for name in streams})
            return
        ended = [_print(client, task_id, name, run, alone=stream is not None) for name in streams]
        if not all(ended):
            status = words(client.task(task_id)["status"])
            note(f"the task is {status}; its output is here when it has ended")


def _pieces(client: "Client", task_id: str, stream: str, run: int | None) -> Iterator["Log"]:
    offset = 0
    while True:
        piece = client.logs(task_id, stream=stream, run=run, offset=offset)
        yield piece
        if piece.eof or piece.next_offset <= offset or offset > TOTAL_LIMIT:
            return
        offset = piece.next_offset


def _print(client: "Client", task_id: str, stream: str, run: int | None, *, alone: bool) -> bool:
    """True if that was all of it."""
    target = sys.stdout if alone or stream == "stdout" else sys.stderr
    sink = _Terminal(target) if target.isatty() else _Pipe(target)
    piece = None
    for piece in _pieces(client, task_id, stream, run):
        sink.write(content(piece))
    sink.close()
    if piece is not None and piece.dropped != 0:
        amount = "some" if piece.dropped is None else str(piece.dropped)
        note(f"{amount} bytes of {stream} were not kept")
    return piece is not None and piece.eof


class _Terminal:
    """Shows control characters; a character cut in two by a piece is put together again."""

    def __init__(self, target: IO[str]) -> None:
        self._target = target
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._line_open = False

    def write(self, data: bytes, final: bool = False) -> None:
        text = visible_lines(self._decoder.decode(data, final))
        if text:
            self._line_open = not text.endswith("\n")
            self._target.write(text)

    def close(self) -> None:
        self.write(b"", final=True)
        if self._line_open:
            self._target.write("\n")
        self._target.flush()


class _Pipe:
    """Hands the bytes on."""

    def __init__(self, target: IO[str]) -> None:
        target.flush()
        self._target = target.buffer  # type: ignore[attr-defined]  # of the standard streams

    def write(self, data: bytes) -> None:
        self._target.write(data)

    def close(self) -> None:
        self._target.flush()


def content(piece: "Log") -> bytes:
    """The bytes of a piece, whichever way it was sent."""
    if piece.encoding != "base64":
        return piece.data.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(piece.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unreachable("the server sent output that is not the base64 it claims") from error


def _collected(client: "Client", task_id: str, stream: str, run: int | None) -> dict[str, Json]:
    data = bytearray()
    piece = None
    for piece in _pieces(client, task_id, stream, run):
        data += content(piece)
    told: dict[str, Json] = {
        "eof": piece is not None and piece.eof,
        "dropped": None if piece is None else piece.dropped,
    }
    try:
        return {"data": data.decode(), "encoding": "utf-8", **told}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode(), "encoding": "base64", **told}
