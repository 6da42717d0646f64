"""Sends what running tasks print: as it comes where somebody reads it, else now and then."""

import asyncio
import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agent_core import (
    AgentHandle,
    Clock,
    Code,
    Event,
    Json,
    Key,
    Outcome,
    Signal,
    Status,
    Stream,
    Unreachable,
    wire,
)
from agent_core_plugins.server_client.contact import Contact, first
from agent_core_plugins.server_client.http import Reply
from agent_core_plugins.server_client.leases import task_path

STREAMS: Final[tuple[Stream, ...]] = ("stdout", "stderr")
PIECE: Final = 192 * 2**10  # bytes in one request; a third more as base64
PIECES: Final = 4  # of one stream in one round
AT_ONCE: Final = 4  # runs of which something is under way
EVERY: Final = 10.0  # seconds between two looks at a run that nobody watches
WATCHED_EVERY: Final = 0.25
FINISH_LIMIT: Final = 2.0  # seconds that a result waits for the last piece of its output
LEFT: Final = 60.0  # seconds for which a run that ended is remembered, for its result to come
AWAITED: Final = 60.0  # seconds for which a run of a task that somebody reads is looked out for
RUNS: Final = 1000  # remembered at most
_OVER = (Code.ATTEMPT_LOST, Code.TASK_FINAL, Code.NO_SUCH_TASK, Code.INVALID, Code.TOO_LARGE)


@dataclass(kw_only=True, slots=True, eq=False)
class Run:
    """How much of one run's output the server has. Times are boot times."""

    key: Key
    run_no: int
    due: float  # when it is looked at next
    watched: bool = False
    over: bool = False  # the server wants no more of it
    seen: float = 0.0  # when it was running
    offsets: dict[Stream, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Logs:
    """Reads running tasks' output from the agent, never more than a piece of each at a time."""

    def __init__(self, contact: Contact, *, source: str, clock: Clock, log: Any) -> None:
        self._contact = contact
        self._source = source
        self._clock = clock
        self._log = log
        self._runs: dict[tuple[Key, int], Run] = {}
        self._awaited: dict[Key, float] = {}  # somebody reads it: until when its runs are awaited
        self._watched = Signal()
        self._gate = asyncio.Semaphore(AT_ONCE)

    def watch(self, agent: AgentHandle, key: Key) -> bool:
        """Somebody reads its output now. False if this agent does not run it."""
        self._await(key)  # told with the task itself, this comes before its run
        self._look(agent)
        runs = [run for run in self._runs.values() if run.key == key]
        for run in runs:
            run.watched, run.due = True, 0.0
        self._watched.send()
        return bool(runs)

    def _await(self, key: Key) -> None:
        if len(self._awaited) < RUNS or key in self._awaited:
            self._awaited[key] = self._clock.boottime() + AWAITED

    async def keep(self, agent: AgentHandle) -> None:
        """Send what is new, for as long as the agent lives and the server wants it."""
        while True:
            watched, registered = self._watched.next(), self._contact.registers.next()
            try:
                if not self._contact.speaks(wire.Word.LOGS):
                    await registered
                    continue
                pause = await self._round(agent)
                await first(self._clock.sleep(pause), watched, registered)
            finally:
                watched.cancel()
                registered.cancel()

    async def finish(self, events: Sequence[Event]) -> None:
        """Before these ends are told: the rest of what was streamed of their runs.

        The ends carry the output as well, so what takes long is left to them.
        """
        ended = [
            (run, event.outcome)
            for event in events
            if event.outcome and (run := self._runs.pop((event.key, event.run_no), None))
        ]
        streamed = [
            each for each in ended if any(each[0].offsets.values()) or each[0].lock.locked()
        ]
        if streamed and self._contact.speaks(wire.Word.LOGS):
            sending = asyncio.gather(
                *(self._finish(run, outcome) for run, outcome in streamed), return_exceptions=True
            )
            await first(self._clock.sleep(FINISH_LIMIT), sending)

    # --- a round

    async def _round(self, agent: AgentHandle) -> float:
        """Seconds until the next one."""
        now = self._look(agent)
        due = [run for run in self._runs.values() if run.due <= now and run.seen == now]
        if self._contact.state == "here":
            await asyncio.gather(*(self._upload(agent, run) for run in due))
        for run in due:
            run.due = now + (WATCHED_EVERY if run.watched else EVERY)
        there = [run for run in self._runs.values() if run.seen == now]
        times = [run.due for run in there]
        if not self._awaited.keys() <= {run.key for run in there}:
            times.append(now + WATCHED_EVERY)
        return max(min(times, default=now + EVERY) - self._clock.boottime(), 0.05)

    def _look(self, agent: AgentHandle) -> float:
        """Which runs there are now; that is, at the boot time that it returns."""
        now = self._clock.boottime()
        for held in agent.held(self._source):
            if held.status not in {Status.RUNNING, Status.SUSPENDED} or held.run_no < 1:
                continue
            place = (held.key, held.run_no)
            if place not in self._runs and len(self._runs) < RUNS:
                read = held.key in self._awaited
                due = now if read else now + EVERY
                self._runs[place] = Run(key=held.key, run_no=held.run_no, due=due, watched=read)
            if place in self._runs:
                self._runs[place].seen = now
        for place in [place for place, run in self._runs.items() if now - run.seen > LEFT]:
            del self._runs[place]
        for key in [key for key, until in self._awaited.items() if until <= now]:
            del self._awaited[key]
        return now

    async def _upload(self, agent: AgentHandle, run: Run) -> None:
        async with self._gate, run.lock:
            try:
                for stream in STREAMS:
                    for _ in range(PIECES):
                        if not await self._next(agent, run, stream):
                            break
            except Unreachable:
                return
            except Exception as error:  # an executor's own trouble must not end the agent
                self._log.warning(
                    "a task's output cannot be sent while it runs; it comes with its result",
                    task=run.key.task_id,
                    reason=f"{type(error).__name__}: {error}",
                )
                run.over = True

    async def _next(self, agent: AgentHandle, run: Run, stream: Stream) -> bool:
        """Send what follows. True if there may be more."""
        offset = run.offsets[stream]
        if run.over:
            return False
        piece = await agent.output(run.key, run.run_no, stream, offset, PIECE)
        if piece is None or not piece.data:
            return False
        reply = await self._send(run, stream, piece.offset, piece.data, piece.offset - offset)
        self._heed(run, stream, reply)
        return piece.total > run.offsets[stream] != offset

    async def _send(
        self, run: Run, stream: Stream, offset: int, data: bytes, dropped: int, **more: Json
    ) -> Reply:
        return await self._contact.call(
            task_path(run.key, "log"),
            attempt_id=run.key.attempt_id,
            run_no=run.run_no,
            stream=stream,
            offset=offset,
            data=base64.b64encode(data).decode("ascii"),
            dropped=dropped,
            **more,
        )

    def _heed(self, run: Run, stream: Stream, reply: Reply) -> None:
        data = reply.data if isinstance(reply.data, dict) else {}
        offset = data.get("next_offset")
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            offset = None
        if offset is not None and reply.code in {Code.OK, Code.INVALID}:  # or: go on there
            run.offsets[stream] = offset
            if reply.code == Code.OK:
                run.watched = data.get("watched") is True
                if run.watched:
                    self._await(run.key)
                else:
                    self._awaited.pop(run.key, None)
            return
        if reply.code == Code.NO_ROUTE:
            self._contact.unlearn(wire.Word.LOGS)
        elif reply.code in _OVER or reply.code == Code.OK:
            run.over = True

    # --- the end of a run

    async def carry(self, event: Event) -> bool:
        """All that was kept of a run that ended, which is too much for its event. False: not all.

        Raises Unreachable.
        """
        run = Run(key=event.key, run_no=event.run_no, due=0.0)
        for stream in STREAMS:
            if event.outcome is None or not await self._rest(run, event.outcome, stream):
                return False
        return True

    async def _finish(self, run: Run, outcome: Outcome) -> None:
        async with run.lock:
            for stream in STREAMS:
                await self._rest(run, outcome, stream, most=PIECE)

    async def _rest(
        self, run: Run, outcome: Outcome, stream: Stream, most: float = math.inf
    ) -> bool:
        """What was kept and is not told yet, at most so many bytes. True if it is all there."""
        kept = parted(getattr(outcome, stream), getattr(outcome, f"dropped_{stream}"))
        if kept is None:
            return False
        head, gap, tail = kept
        rest = pieces(head, gap, tail, run.offsets[stream])
        if sum(len(data) for _, data, _ in rest) > most:
            return False
        last: dict[str, Json] = {"eof": True}
        if not gap:  # else more may have been sent while it ran than was kept in the end
            last["sha256"] = hashlib.sha256(head).hexdigest()
        for place, (offset, data, dropped) in enumerate(rest, 1):
            more = last if place == len(rest) else {}
            reply = await self._send(run, stream, offset, data, dropped, **more)
            self._heed(run, stream, reply)
            if run.over or reply.code != Code.OK:
                return False
        return True


def parted(data: bytes, dropped: int | None) -> tuple[bytes, int, bytes] | None:
    """What was kept before the gap, its length, and what was kept behind; None: not known."""
    if dropped == 0:
        return data, 0, b""
    if dropped is None:
        return None
    head, marker, tail = data.partition(b"\n...[truncated, %d bytes dropped]\n" % dropped)
    return (head, dropped, tail) if marker else None


def pieces(head: bytes, gap: int, tail: bytes, offset: int) -> list[tuple[int, bytes, int]]:
    """What is left to be told behind `offset`: place, bytes, and how many before it are gone.

    There is at least one, empty where nothing is left: the end is told with the last.
    """
    found = [(start, head[start : start + PIECE], 0) for start in range(offset, len(head), PIECE)]
    offset = max(offset, len(head))
    behind = len(head) + gap
    for start in range(max(offset, behind), behind + len(tail), PIECE):
        found.append((start, tail[start - behind :][:PIECE], start - offset))
        offset = start + len(found[-1][1])
    return found or [(offset, b"", 0)]
