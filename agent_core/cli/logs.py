"""`logs`: what a task wrote, harmless on a terminal and byte for byte in a pipe."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from agent_core.api.wire import Json
from agent_core.cli.config import connect
from agent_core.cli.ids import id_argument
from agent_core.cli.output import json_option, note, print_json
from agent_core.cli.text import words
from agent_core.cli.viewers import STREAMS, JsonLines, Plain, Viewer, coded, not_kept

if TYPE_CHECKING:
    from agent_core.api.client import Client
    from agent_core.api.replies import Log

TOTAL_LIMIT: Final = 256 * 2**20  # bytes of one stream in one JSON document
_OFFSETS: Final = re.compile(r"(\d{1,18})(?::(\d{1,18}))?", re.ASCII)


class Offsets(click.ParamType[tuple[int, int]]):
    """`N`, of the first stream that is shown, or `OUT:ERR`."""

    name = "offset"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = _OFFSETS.fullmatch(str(value))
        if match is None:
            self.fail(
                f"{value!r} is no offset: write bytes, or OUT:ERR for stdout and stderr", param, ctx
            )
        return int(match[1]), int(match[2] or 0)


@click.command(
    epilog="""\b
    On a terminal control characters are shown (\\x1b), not sent, unless --raw is given; into a pipe
    or a file go the bytes as the task wrote them.
    \b
    Examples:
      remotegpu logs $ID
      remotegpu logs -f $ID                        while it runs, until it has ended
      remotegpu logs $ID --stream stdout > result.bin
      remotegpu logs $ID --run 1
    """
)
@id_argument()
@click.option(
    "-f", "--follow", is_flag=True,
    help="Go on as the task writes, until it has ended; Ctrl-C leaves the task running.",
)  # fmt: skip
@click.option(
    "--stream", type=click.Choice([*STREAMS, "both"]), default="both",
    help="Only this one, to standard output; default both, each to its own.",
)  # fmt: skip
@click.option(
    "--run", type=click.IntRange(1), help="Of this run (with -f: from it on); default the last."
)
@click.option(
    "--offset", "offsets", type=Offsets(), metavar="N[:M]", default="0",
    help="Begin there: bytes of the stream, or of stdout:stderr.",
)  # fmt: skip
@click.option("--raw", is_flag=True, help="Send a terminal what the task wrote, as it is.")
@json_option
def logs(
    *, task_id: str, follow: bool, stream: str, run: int | None, offsets: tuple[int, int],
    raw: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print what a task wrote: its stdout to stdout, its stderr to stderr."""
    streams = STREAMS if stream == "both" else (stream,)
    begin = dict(zip(streams, offsets, strict=False))
    if len(streams) == 1 and offsets[1]:
        raise click.UsageError("--offset: N:M is for both streams; one of them has one offset")
    with connect(as_json=as_json) as client:
        if follow:
            viewer = JsonLines() if as_json else Plain(streams, raw=raw)
            follow_with(viewer, client, task_id, streams=streams, run=run, offsets=begin)
        elif as_json:
            print_json(
                {name: _collected(client, task_id, name, run, begin[name]) for name in streams}
            )
        else:
            _print(client, task_id, run, begin, Plain(streams, raw=raw))


def follow_with(viewer: Viewer, client: "Client", task_id: str, **what: Any) -> dict[str, Json]:
    """Show a task's output until it has ended; the task."""
    from agent_core.cli.following import Follower  # noqa: PLC0415  # `logs --help` needs none of it

    try:
        return Follower(client, task_id, viewer, **what).follow()
    finally:
        viewer.close()


def _pieces(
    client: "Client", task_id: str, stream: str, run: int | None, offset: int
) -> Iterator["Log"]:
    while True:
        piece = client.logs(task_id, stream=stream, run=run, offset=offset)
        yield piece
        if piece.eof or piece.next_offset <= offset:
            return
        offset = piece.next_offset


def _print(
    client: "Client", task_id: str, run: int | None, begin: Mapping[str, int], viewer: Viewer
) -> None:
    ended = []
    for name, offset in begin.items():
        pieces = _pieces(client, task_id, name, run, offset)
        ended.append(_print_stream(pieces, name, run, offset, viewer))
    viewer.close()
    if not all(ended):
        status = words(client.task(task_id)["status"])
        note(f"the task is {status}; to see more as it comes: remotegpu logs -f {words(task_id)}")


def _print_stream(
    pieces: Iterable["Log"], name: str, run: int | None, offset: int, viewer: Viewer
) -> bool:
    """True if that was all of it."""
    gaps = False
    for piece in pieces:
        if piece.offset > offset:
            gaps = True
            viewer.say(not_kept(name, piece.offset - offset))
        offset = piece.next_offset
        viewer.show(run, name, piece)
        if piece.eof:
            if piece.dropped != 0 and not gaps:
                viewer.say(not_kept(name, piece.dropped))
            return True
    return False


def _collected(
    client: "Client", task_id: str, stream: str, run: int | None, offset: int
) -> dict[str, Json]:
    data = bytearray()
    piece = None
    for piece in _pieces(client, task_id, stream, run, offset):
        data += piece.data
        if len(data) > TOTAL_LIMIT:
            break
    return {
        **coded(bytes(data)),
        "eof": piece is not None and piece.eof,
        "dropped": None if piece is None else piece.dropped,
    }
