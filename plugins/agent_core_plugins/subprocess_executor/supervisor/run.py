"""One run of a supervisor's, and the words in which it is told and journalled."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from resource import struct_rusage

    from .sink import Sink


class Run:
    """One start that began, until it is forgotten."""

    __slots__ = ("_began", "boot", "cap", "end", "fifos", "mark", "out", "owed", "passes", "pid", "sinks", "start_id", "ticks", "wall", "wide")  # fmt: skip # noqa: E501

    def __init__(self, start_id: str, out: list[str], cap: int) -> None:
        self.start_id = start_id
        self.out = out  # paths of the kept output
        self.cap = cap  # bytes kept of each stream
        self.wall = time.time()
        self.boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._began = time.monotonic()
        self.pid = 0
        self.ticks = 0
        self.fifos = (-1, -1)
        self.sinks: list[Sink | None] = [None, None]  # made with the first byte
        self.wide = [False, False]
        self.end = ""  # how its main process ended; as the members of a JSON object, like all here
        self.mark = ""  # the words that its first signal with words bore, as JSON
        self.owed = True  # the end is not told yet
        self.passes = False  # once it has ended, one that was handed over ahead takes its place

    def identity(self) -> str:
        return f'"pid":{self.pid},"ticks":{self.ticks},"wall":{self.wall!r},"since":{self.boot!r}'

    def told(self) -> str:
        """What is told of it as it stands."""
        end = "" if self.owed else f',"end":{{{self.end}}}'
        mark = f',"mark":{self.mark}' if self.mark else ""
        return f'"s":"{self.start_id}",{self.identity()}{mark}{end}'

    def started(self) -> str:
        """The answer to its start."""
        return f'"t":"started",{self.told()}'

    def ended(self, status: int, used: struct_rusage) -> None:
        """Its main process was reaped, and its output is complete."""
        lengths = []
        for sink in self.sinks:
            lengths.append(sink.total if sink else 0)
            if sink:
                sink.close()
        self.end = (
            f'"status":{status},"user":{used.ru_utime:.6f},"system":{used.ru_stime:.6f},'
            f'"rss":{used.ru_maxrss * 1024},"wall_s":{time.monotonic() - self._began:.6f},'
            f'"at":{time.time()!r},"out":[{lengths[0]},{lengths[1]}]'
        )
