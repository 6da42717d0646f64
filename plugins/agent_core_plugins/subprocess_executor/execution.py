"""One run as core sees it: its end, its signals and its output, wherever its supervisor is."""

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from agent_core import (
    Clock,
    Code,
    Execution,
    Instant,
    Outcome,
    Piece,
    Reason,
    Stream,
    Usage,
    signal_name,
)

from . import kept
from .house import House
from .known import Away, Known, Line
from .link import LinkLost
from .orphan import Orphan

ASK_AGAIN = 1.0  # seconds between two questions to a supervisor that does not answer
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")
READ_IN_LOOP = 65536  # bytes of output that are read without a thread


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """What every execution of one agent works with."""

    house: House
    clock: Clock
    output: Path  # directory of the kept output
    grace: float  # seconds

    def kept(self, start_id: str, stream: Stream) -> str:
        return f"{self.output}/{start_id}.{stream}"


class SubprocessExecution(Execution):
    """A run of a supervisor of ours, living or dead."""

    survives: ClassVar[bool] = True

    def __init__(self, tools: Tools, start_id: str, known: Known) -> None:
        facts = known.facts or {}
        self.grace = tools.grace
        self.handle = {
            "place": known.place,
            "journal": known.journal_id,
            "boot": tools.clock.boot_id,
            **{name: facts[name] for name in ("pid", "ticks", "wall", "since") if name in facts},
        }
        self.started_at = _instant(facts, tools.clock)
        self.terminated = known.mark
        self._tools = tools
        self._start_id = start_id
        self._known = known
        self._outcome: Outcome | None = None
        self._waiting: list[asyncio.Future[Outcome]] = []
        self._listens = False
        self._search: asyncio.Task[None] | None = None

    async def wait(self) -> Outcome:
        return await self.outcome()

    def outcome(self) -> "asyncio.Future[Outcome]":
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._outcome is not None:
            future.set_result(self._outcome)
            return future
        self._waiting = [each for each in self._waiting if not each.done()]
        self._waiting.append(future)
        if self._search is not None:
            future.add_done_callback(self._given_up)
        elif not self._listens:
            self._listens = True
            self._listen()
        return future

    async def signal(self, signum: int) -> bool:
        return await self._signal(signum)

    async def terminate(self, words: str) -> bool:
        return await self._signal(signal.SIGTERM, words)

    async def _signal(self, signum: int, mark: str = "") -> bool:
        while self._outcome is None:
            link = self._known.link
            if link is None or link.silent:
                orphan = self._orphan(self._known)
                return orphan is not None and orphan.signal(signum)
            try:
                return await link.signal(self._start_id, signum, mark)
            except LinkLost:
                await self._look_again()
        return False

    async def tail(self, stream: Stream, limit: int) -> bytes:
        try:
            return kept.tail(self._tools.kept(self._start_id, stream), limit)
        except OSError:
            return b""

    async def output(self, stream: Stream, offset: int, limit: int) -> Piece:
        # The length first: if it is known, the file has been whole since before it is read.
        length = self._known.end["out"][STREAMS.index(stream)] if self._known.end else 0
        path = self._tools.kept(self._start_id, stream)
        try:
            if limit > READ_IN_LOOP:
                piece = await asyncio.to_thread(kept.piece, path, offset, limit)
            else:
                piece = kept.piece(path, offset, limit)
        except OSError:
            piece = Piece(offset, b"", 0)
        if length <= piece.total:
            return piece
        if piece.data or piece.offset < piece.total:
            return piece._replace(total=length)
        return Piece(max(piece.offset, length), b"", length)  # no file took the rest: a full disk

    async def forget(self) -> None:
        self._tools.house.forget(self._known.place, self._start_id)
        lengths = self._known.end["out"] if self._known.end else (1, 1)
        for stream, length in zip(STREAMS, lengths, strict=True):
            if length:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._tools.kept(self._start_id, stream))

    # --- the end

    def _listen(self) -> None:
        if self._known.link is not None:
            self._known.link.listen(self._start_id, self._hear)
        else:
            self._seek()

    def _hear(self, end: Line | None) -> None:
        """The supervisor's word; None if it can say nothing any more."""
        if end is None or max(end["out"]) > READ_IN_LOOP:
            self._seek()
        else:
            self._settle(self._outcome_of(end))

    def _seek(self) -> None:
        """What takes time; for as long as somebody waits for it."""
        self._search = asyncio.create_task(self._find_out(), name="seek an end")
        for future in self._waiting:
            future.add_done_callback(self._given_up)

    def _given_up(self, _: object) -> None:
        if self._search is not None and all(each.done() for each in self._waiting):
            self._search.cancel()
            self._search, self._listens = None, False

    async def _find_out(self) -> None:
        known = self._known
        outcome: Outcome | Exception
        try:
            if known.link is None:
                outcome = await self._end_without_supervisor(known)
            elif known.end is not None:
                outcome = await asyncio.to_thread(self._outcome_of, known.end)
            else:
                await self._look_again()
                self._search = None
                self._listen()
                return
        except Exception as error:  # for whoever waits: it may ask again
            outcome = error
        self._search = None
        self._settle(outcome)

    def _settle(self, outcome: Outcome | Exception) -> None:
        waiting, self._waiting, self._listens = self._waiting, [], False
        if isinstance(outcome, Outcome):
            self._outcome = outcome
        for future in waiting:
            if future.done():
                continue  # whoever waited was cancelled
            if isinstance(outcome, Outcome):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

    async def _look_again(self) -> None:
        """The link was lost: is there another to the same supervisor, or only its journal?"""
        try:
            found = await self._tools.house.find(self._start_id)
        except (Away, OSError):
            await self._tools.clock.sleep(ASK_AGAIN)
            return
        gone = Known(place=self._known.place, journal_id="", facts=self._known.facts)
        self._known = found or gone

    async def _end_without_supervisor(self, known: Known) -> Outcome:
        orphan = self._orphan(known)
        if orphan is not None:
            await orphan.gone()
        return await asyncio.to_thread(self._end_of_orphan, known)

    def _end_of_orphan(self, known: Known) -> Outcome:
        if known.end is not None:
            return self._outcome_of(known.end)
        stdout, _ = self._output("stdout", None)  # some may have been lost, nobody knows
        stderr, _ = self._output("stderr", None)
        return Outcome(
            reason=Reason.LOST,
            error_code=Code.LOST,
            error="the supervisor that started it is gone, so nobody can know how it ended",
            stdout=stdout,
            stderr=stderr,
            dropped_stdout=None,
            dropped_stderr=None,
            ended_at=self._tools.clock.wall(),
        )

    def _orphan(self, known: Known) -> Orphan | None:
        return Orphan(self._start_id, known.facts, self._tools.clock) if known.facts else None

    def _outcome_of(self, end: Line) -> Outcome:
        stdout, dropped_stdout = self._output("stdout", end["out"][0])
        stderr, dropped_stderr = self._output("stderr", end["out"][1])
        usage = Usage(
            wall_s=end["wall_s"],
            user_s=end["user"],
            system_s=end["system"],
            max_rss_bytes=int(end["rss"]),
        )
        return Outcome(
            **_exit(end["status"]),
            stdout=stdout,
            stderr=stderr,
            dropped_stdout=dropped_stdout,
            dropped_stderr=dropped_stderr,
            usage=usage,
            ended_at=end["at"],
        )

    def _output(self, stream: Stream, length: int | None) -> tuple[bytes, int | None]:
        """What was kept of a stream `length` bytes long, and how much was not."""
        if length == 0:
            return b"", 0
        try:
            return kept.read(self._tools.kept(self._start_id, stream)).merged(length)
        except OSError as error:
            words = f"[the kept output cannot be read: {error.strerror}]\n"
            return words.encode(), length


def _exit(status: int) -> dict[str, Any]:
    """The first half of an Outcome, from a status as wait4 gives it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {"reason": Reason.SIGNAL, "exit_code": 128 + number, "signal": signal_name(number)}
    return {"reason": Reason.EXITED, "exit_code": os.WEXITSTATUS(status)}


def _instant(facts: Line, clock: Clock) -> Instant | None:
    if "wall" not in facts or "since" not in facts:
        return None
    return Instant(wall=facts["wall"], boottime=facts["since"], boot_id=clock.boot_id)
