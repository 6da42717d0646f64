"""Where the pieces of a task's output go: a terminal, a pipe or a file, or lines of JSON."""

import base64
import codecs
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Final, Protocol

from agent_core.api.wire import Json
from agent_core.cli.output import note, print_json_line
from agent_core.cli.text import visible_output

if TYPE_CHECKING:
    from agent_core.api.replies import Log

STREAMS: Final = ("stdout", "stderr")


class Viewer(Protocol):
    """Whoever is shown a task's output."""

    def show(self, run: int | None, stream: str, piece: "Log") -> None: ...

    def say(self, text: str) -> None:
        """A remark beside the output."""

    def close(self) -> None: ...


class Plain:
    """Each stream goes to its own of ours; one alone goes to standard output."""

    def __init__(self, streams: Sequence[str], *, raw: bool = False) -> None:
        self._screen = _Screen()
        self._run: int | None = None
        self._sinks = {
            name: self._sink(
                sys.stdout if name == "stdout" or len(streams) == 1 else sys.stderr, raw
            )
            for name in streams
        }

    def _sink(self, target: IO[str], raw: bool) -> "_Terminal | _Pipe":
        if target.isatty() and not raw:
            return _Terminal(target, self._screen)
        return _Pipe(target, self._screen)

    def show(self, run: int | None, stream: str, piece: "Log") -> None:
        if run != self._run:  # a character that the run before did not finish stays unfinished
            self.close()
            self._run = run
        self._sinks[stream].write(piece.data)

    def say(self, text: str) -> None:
        self._screen.end_line()
        note(text)

    def close(self) -> None:
        for sink in self._sinks.values():
            sink.close()
        self._screen.end_line()


class _Screen:
    """The terminal that both streams may share; knows whether its last line is open."""

    def __init__(self) -> None:
        self._open: IO[str] | None = None  # whoever wrote the last line, if it is not ended

    def wrote(self, target: IO[str], ended: bool) -> None:
        self._open = None if ended or not target.isatty() else target

    def end_line(self) -> None:
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None


class _Terminal:
    """Shows control characters; a character cut in two by a piece is put together again."""

    def __init__(self, target: IO[str], screen: _Screen) -> None:
        self._target = target
        self._screen = screen
        self._harmless = Harmless()

    def write(self, data: bytes) -> None:
        self._put(self._harmless.text(data))

    def close(self) -> None:
        self._put(self._harmless.end())

    def _put(self, text: str) -> None:
        if text:
            self._target.write(text)
            self._screen.wrote(self._target, text.endswith("\n"))
        self._target.flush()


class Harmless:
    """Bytes to text in which nothing acts on a terminal, however they are cut into pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def text(self, data: bytes) -> str:
        return visible_output(self._decoder.decode(data))

    def end(self) -> str:
        """What is left of a character that never became whole."""
        return visible_output(self._decoder.decode(b"", True))


class _Pipe:
    """Hands the bytes on."""

    def __init__(self, target: IO[str], screen: _Screen) -> None:
        target.flush()
        self._target = target
        self._buffer = target.buffer  # type: ignore[attr-defined]  # of the standard streams
        self._screen = screen

    def write(self, data: bytes) -> None:
        if data:
            self._target.flush()  # a remark before it
            self._buffer.write(data)
            self._screen.wrote(self._target, data.endswith(b"\n"))
        self._buffer.flush()

    def close(self) -> None:
        self._buffer.flush()


class JsonLines:
    """One document a piece."""

    def show(self, run: int | None, stream: str, piece: "Log") -> None:
        if piece.data:
            told: dict[str, Json] = {"run": run, "stream": stream, "offset": piece.offset}
            print_json_line({**told, **coded(piece.data)})
            sys.stdout.flush()

    def say(self, text: str) -> None:
        note(text, as_json=True)

    def close(self) -> None: ...


def coded(data: bytes) -> dict[str, str]:
    """Bytes for JSON: as text where they are, else as base64."""
    try:
        return {"data": data.decode(), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode(), "encoding": "base64"}


def not_kept(stream: str, amount: int | None) -> str:
    """The remark on bytes that are gone; None is an unknown number of them."""
    return f"{'some' if amount is None else amount} bytes of {stream} were not kept"
