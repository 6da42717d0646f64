"""The agent's end of one supervisor's socket: hello, requests, answers, ends."""

import asyncio
import json
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from .known import Known, Line
from .supervisor.journal import VERSION, encode

Hear = Callable[[Line | None], None]
# It began by itself; or it waits no more, and did not begin as far as we know.
Ahead = tuple[Callable[[], None], Callable[[], None]]
HELLO_TIMEOUT = 10.0  # seconds until a supervisor that says nothing counts as away for now
LINE_LIMIT = 8 * 1024 * 1024  # bytes of one request, the supervisor's own bound
INBOX = 65536  # bytes that are read at once
LET_GO = 0.1  # seconds for which runs that were forgotten may wait for something else to be said
MARK_LIMIT = 400  # bytes of a mark as it stands in the journal


PING = encode({"t": "ping"})


class LinkLost(ConnectionError):
    """The supervisor hung up, or is gone; what was asked may or may not have been done."""


class Strange(Exception):
    """Whoever answers on that socket is not our supervisor."""


class Link(asyncio.BufferedProtocol):
    """One connection. Its runs stay readable after it was lost.

    What is asked in one turn of the event loop leaves in one write.
    """

    def __init__(self, place: str, journal_id: str) -> None:
        self.place = place  # the directory's name
        self.journal_id = journal_id
        self.pid = 0  # of the supervisor
        self.runs: dict[str, Known] = {}
        self.ahead = False  # does this supervisor take starts ahead of their time?
        self.lost = False
        self.silent = False  # it was asked for a sign of life in vain: stopped, or stuck
        self._asked = False  # and has not answered yet
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[Line] = self._loop.create_future()
        self.unanswered: set[str] = set()  # starts that were sent, and may come about at any time
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._starts: dict[str, asyncio.Future[Line]] = {}
        self._signals: dict[int, asyncio.Future[bool]] = {}
        self._hearers: dict[str, list[Hear]] = {}
        self._forgotten: list[str] = []
        self._handed: dict[str, Ahead] = {}  # ahead, and nothing was heard of them
        self._outgoing: list[bytes] = []
        self._flushing: asyncio.Handle | None = None
        self._letting_go: asyncio.TimerHandle | None = None
        self._numbers = count(1)
        self._inbox = memoryview(bytearray(INBOX))
        self._rest = b""  # of a line that has not come whole
        self._transport: asyncio.Transport | None = None

    # --- what the executor asks

    async def start(self, start_id: str, request: bytes) -> Line:
        """Have a run started; the supervisor's `started` or `never`. Raises LinkLost.

        `request` is the line that asks for it. There is no time limit: giving up on an answer would
        leave a run that nobody knows of.
        """
        return await self.ask(start_id, request)

    def ask(
        self, start_id: str, request: bytes, ahead: Ahead | None = None
    ) -> "asyncio.Future[Line]":
        """`start`, with the answer as a future: it may be asked ahead of its time.

        The first of `ahead` is called before the end of the run is told in whose place it began by
        itself; the second when that cannot come any more. Neither, once `say` let it begin.
        """
        self._send(request)
        if ahead:
            self._handed[start_id] = ahead
        self.unanswered.add(start_id)
        answer = self._starts[start_id] = self._loop.create_future()
        return answer

    def waits(self, start_id: str) -> bool:
        """It was asked for ahead of its time, and nothing was heard of it."""
        return start_id in self._handed

    def say(self, what: str, start_id: str) -> None:
        """`begin` or `recall` what was asked for ahead; `ask`'s future tells what became of it."""
        self._send(encode({"t": what, "s": start_id}))
        if what == "begin":
            self._handed.pop(start_id, None)

    async def signal(self, start_id: str, signum: int, mark: str = "") -> bool:
        """Signal a run's tree. False if its main process had ended by itself. Raises LinkLost.

        The first `mark` that a run was signalled with is journalled and told with it.
        """
        number = next(self._numbers)
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._signals[number] = answer
        line = {"t": "signal", "s": start_id, "signal": signum, "n": number}
        try:
            self._send(encode({**line, "mark": shortened(mark)} if mark else line))
            return await answer
        finally:
            self._signals.pop(number, None)

    def listen(self, start_id: str, hear: Hear) -> None:
        """Call `hear` with a run's end when it comes; with None once this link is lost.

        At once, if that is so already or the run is unknown.
        """
        run = self.runs.get(start_id)
        if run is None or run.end is not None or self.lost:
            hear(run.end if run else None)
        else:
            self._hearers.setdefault(start_id, []).append(hear)

    def forget(self, start_id: str) -> None:
        """Let the supervisor let go of a run; told with whatever is said next, or a little later.

        An agent that is killed in between leaves runs that the next one tidies up.
        """
        self.runs.pop(start_id, None)
        self._hearers.pop(start_id, None)
        self._forgotten.append(start_id)
        if self._letting_go is None:
            self._letting_go = self._loop.call_later(LET_GO, self._flush)

    def attend(self) -> bool:
        """To be called now and then, while it lives: is it silent?

        Asks for a sign of life where something is going on; it is silent if the last one that was
        asked for has not come.
        """
        if self._asked:
            self.silent = True
            for answer in self._signals.values():
                if not answer.done():
                    answer.set_exception(LinkLost("the supervisor does not answer"))
        elif self.unanswered or any(run.end is None for run in self.runs.values()):
            self._asked = True
            self._send(PING)
        return self.silent

    async def closed(self) -> None:
        """Returns when the link was lost."""
        await asyncio.shield(self._closed)

    def close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.abort()

    def _send(self, line: bytes) -> None:
        if self.lost or self._transport is None:
            raise LinkLost("the supervisor is gone")
        self._outgoing.append(line)
        if self._flushing is None:
            self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        for handle in (self._flushing, self._letting_go):
            if handle is not None:
                handle.cancel()
        self._flushing = self._letting_go = None
        lines, self._outgoing = self._outgoing, []
        forgotten, self._forgotten = self._forgotten, []
        if forgotten:
            lines.append(encode({"t": "forget", "s": forgotten}))
        if lines and not self.lost and self._transport is not None:
            self._transport.write(b"".join(lines))

    # --- what the supervisor says

    async def greet(self, env: Mapping[str, str]) -> None:
        """Say hello and take in what the supervisor knows. `env` is the base of every start's.

        Raises LinkLost, Strange, TimeoutError.
        """
        self._send(encode({"t": "hello", "v": VERSION, "env": dict(env)}))
        async with asyncio.timeout(HELLO_TIMEOUT):
            answer = await self._hello
        if answer.get("v") != VERSION or answer.get("journal") != self.journal_id:
            raise Strange(
                f"a supervisor of protocol version {answer.get('v')} answers where one of"
                f" version {VERSION} was started; let its tasks end, or stop it"
            )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "a unix stream"
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox

    def buffer_updated(self, nbytes: int) -> None:
        self._asked = self.silent = False
        whole, newline, rest = bytes(self._inbox[:nbytes]).rpartition(b"\n")
        if not newline:
            self._rest += rest
            return
        lines, self._rest = self._rest + whole, rest
        for line in json.loads(b"[%s]" % lines.replace(b"\n", b",")):
            self._take(line)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._inbox = memoryview(b"")
        _resolve(self._closed, None)
        waiting: list[asyncio.Future[Any]] = [*self._starts.values(), *self._signals.values()]
        for future in (self._hello, *waiting):
            if not future.done():
                future.set_exception(LinkLost("the supervisor hung up"))
            if not future.cancelled():
                future.exception()  # seen, also if nobody waits any more
        for start_id in tuple(self._handed):  # before the ends whose places they may have
            self._say_lost(start_id)
        for start_id in tuple(self._hearers):
            self._tell_end(start_id, None)

    def _take(self, line: Line) -> None:
        kind = line["t"]
        if kind == "end":
            if "next" in line:
                self._say_begun(line["next"])
            run = self.runs.get(line["s"])
            if run is not None:
                run.end = line["end"]
                self._tell_end(line["s"], run.end)
        elif kind in ("started", "never", "recalled"):
            if kind == "started":
                self.runs.setdefault(line["s"], self._known(line))
                self._say_begun(line["s"])
            self.unanswered.discard(line["s"])
            _resolve(self._starts.pop(line["s"], None), line)
            self._say_lost(line["s"])
        elif kind == "signalled":
            _resolve(self._signals.get(line["n"]), line["done"])
        elif kind == "hello":
            # Now, not when whoever greeted goes on: an end may stand in the very next line.
            self.pid = line["pid"]
            self.ahead = line.get("ahead") is True
            for facts in line["runs"]:
                self.runs[facts["s"]] = self._known(facts)
            _resolve(self._hello, line)

    def _say_begun(self, start_id: str) -> None:
        if ahead := self._handed.pop(start_id, None):
            ahead[0]()

    def _say_lost(self, start_id: str) -> None:
        if ahead := self._handed.pop(start_id, None):
            ahead[1]()

    def _known(self, facts: Line) -> Known:
        return Known(
            place=self.place,
            journal_id=self.journal_id,
            facts=facts,
            link=self,
            end=facts.get("end"),
            mark=facts.get("mark", ""),
        )

    def _tell_end(self, start_id: str, end: Line | None) -> None:
        for hear in self._hearers.pop(start_id, ()):
            hear(end)


def shortened(mark: str) -> str:
    """As much of a mark as finds room in the journal."""
    while len(encode({"mark": mark})) > MARK_LIMIT:
        mark = mark[: len(mark) * 3 // 4]
    return mark


def _resolve(future: asyncio.Future[Any] | None, value: object) -> None:
    if future is not None and not future.done():
        future.set_result(value)
