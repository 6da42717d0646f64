"""The runs: from a start to its end, told only when nothing of its tree is left."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import termios
import time

from . import tree
from .journal import Journal
from .sink import Sink
from .spawn import Refused, Spawner
from .strays import Strays, kill

PIPE = 1024 * 1024  # bytes that a busy stream's pipe is given, and that are read at once
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .journal import Line

    Tell = Callable[[Line], None]


class Run:
    """One start that began, until it is forgotten."""

    __slots__ = ("began", "boot", "end", "fifos", "owed", "pid", "sinks", "start_id", "ticks", "wall", "wide")  # fmt: skip # noqa: E501

    def __init__(self, start_id: str) -> None:
        self.start_id = start_id
        self.began = time.monotonic()
        self.wall = time.time()
        self.boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.pid = 0
        self.ticks = 0
        self.fifos = (-1, -1)
        self.sinks: tuple[Sink, Sink]
        self.wide = [False, False]
        self.end: Line | None = None  # how its main process ended
        self.owed = True  # the end is not told yet

    def exists(self, pid: int, fifos: tuple[int, int]) -> None:
        """Its process is there."""
        one = tree.process(pid)  # our child and not reaped: it is there
        self.pid, self.fifos, self.ticks = pid, fifos, one.ticks if one else 0

    def told(self) -> Line:
        """What is told of it as it stands."""
        line = {"s": self.start_id, **self.identity()}
        if self.end is not None and not self.owed:
            line["end"] = self.end
        return line

    def identity(self) -> Line:
        return {"pid": self.pid, "ticks": self.ticks, "wall": self.wall, "since": self.boot}


class Runs:
    """Every run of this supervisor."""

    def __init__(self, journal: Journal, spawner: Spawner, epoll: select.epoll, tell: Tell) -> None:
        self._journal = journal
        self._spawner = spawner
        self._epoll = epoll
        self._tell = tell
        self._runs: dict[str, Run] = {}
        self._mains: dict[int, Run] = {}  # by the pid of a main process that was not reaped
        self._ending: dict[str, Run] = {}  # ended, and their trees are looked through
        self._streams: dict[int, tuple[Run, int]] = {}
        self._strays = Strays()
        self._buffer = memoryview(bytearray(PIPE))
        self._unwritten: list[tuple[str, str, Line]] = []

    # --- what the agent asks

    def start(self, asked: Line) -> None:
        """Start what is asked, once: the same id again is answered with what became of it."""
        start_id = asked["s"]
        if start_id in self._runs:
            self._tell({"t": "started", **self._runs[start_id].told()})
            return
        try:
            self._journal.intent(start_id)
        except OSError as error:
            self._never(start_id, Refused(error.errno or 0, "journal"))
            return
        run = Run(start_id)
        try:
            pid, fifos = self._spawner.start(start_id, asked["argv"], asked["env"], asked["cwd"])
        except Refused as refused:
            self._note("never", start_id, {"errno": refused.errno, "stage": refused.stage})
            self._never(start_id, refused)
            return
        run.exists(pid, fifos)
        stdout, stderr = (Sink(path, asked["cap"], self._spawner.high) for path in asked["out"])
        run.sinks = (stdout, stderr)
        self._runs[start_id] = self._mains[pid] = run
        self._note("started", start_id, run.identity())
        for place, descriptor in enumerate(fifos):
            self._streams[descriptor] = (run, place)
            self._epoll.register(descriptor, select.EPOLLIN)
        self._tell({"t": "started", **run.told()})

    def signal(self, start_id: str, signum: int) -> bool:
        """Signal the whole tree. False if the main process had ended by itself."""
        run = self._runs.get(start_id)
        if run is None or run.pid not in self._mains or _ended(run.pid):
            return False
        tree.send_group(run.pid, signum)
        self._look_for_strays()
        everything = tree.snapshot()
        for pid in tree.family(everything, {run.pid} | self._strays.of(start_id)):
            one = everything.get(pid)
            if one is not None and one.group != run.pid:
                tree.send(one, signum)
        return True

    def forget(self, start_id: str) -> None:
        """The agent has committed the end."""
        run = self._runs.get(start_id)
        if run is not None and run.owed:
            return  # it lives: whatever was meant, it is not forgotten
        self._runs.pop(start_id, None)
        try:
            self._journal.forget(start_id)
        except OSError:
            return  # its lines stay until the next compaction

    def all(self) -> list[Line]:
        return [run.told() for run in self._runs.values()]

    def busy(self) -> bool:
        """Is there a process of ours?"""
        return bool(self._mains or self._ending or self._strays)

    def ending(self) -> bool:
        """Is there a tree that must be looked at again soon?"""
        return bool(self._ending)

    # --- what happens

    def has(self, descriptor: int) -> bool:
        """Is this a stream of ours?"""
        return descriptor in self._streams

    def output(self, descriptor: int) -> None:
        """A stream can be read."""
        run, place = self._streams[descriptor]
        self._read(run, place, PIPE)

    def reap(self) -> None:
        """Some child has ended: a main process, or one that was adopted."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None:
                break
            run = self._mains.get(found.si_pid)
            if run is None:
                os.waitpid(found.si_pid, 0)
                self._strays.reaped(found.si_pid)
            else:
                self._main_ended(run)
        self.look()

    def look(self) -> None:
        """Tell the ends of those of whose trees nothing is left; kill what is left of others."""
        if not self._ending:
            return
        if not self._look_for_strays():
            for run in tuple(self._ending.values()):
                self._finish(run)
            return
        everything = tree.snapshot()
        for run in tuple(self._ending.values()):
            left = self._strays.of(run.start_id)
            if left:
                kill(everything, left)
            else:
                self._finish(run)
        kill(everything, self._strays.of_nobody())

    def write_again(self) -> None:
        """Journal lines that found no room are tried again."""
        waiting, self._unwritten = self._unwritten, []
        for kind, start_id, facts in waiting:
            if start_id in self._runs:
                self._note(kind, start_id, facts)

    # --- inside

    def _main_ended(self, run: Run) -> None:
        """What the FIFOs hold, then the status, then the journal; the tree comes after."""
        tree.send_group(run.pid, signal.SIGKILL)  # while its number cannot be anybody else's
        for place, descriptor in enumerate(run.fifos):
            self._read(run, place, _held(descriptor))
            del self._streams[descriptor]
            os.close(descriptor)
        _, status, used = os.wait4(run.pid, 0)
        del self._mains[run.pid]
        self._spawner.remove(run.start_id)
        run.end = {
            "status": status,
            "user": round(used.ru_utime, 6),
            "system": round(used.ru_stime, 6),
            "rss": used.ru_maxrss * 1024,
            "wall_s": round(time.monotonic() - run.began, 6),
            "at": time.time(),
            "out": [sink.total for sink in run.sinks],
        }
        for sink in run.sinks:
            sink.close()
        self._note("end", run.start_id, run.end)
        self._ending[run.start_id] = run

    def _finish(self, run: Run) -> None:
        """Nothing of it is left: tell."""
        del self._ending[run.start_id]
        run.owed = False
        self._strays.ended(run.start_id)
        self._tell({"t": "end", "s": run.start_id, "end": run.end})

    def _look_for_strays(self) -> bool:
        """Adopted children: are there any?"""
        untold = (*self._mains.values(), *self._ending.values())
        leaders = {run.pid: run.start_id for run in untold}
        return self._strays.look(self._mains, leaders, self._runs)

    def _read(self, run: Run, place: int, limit: int) -> None:
        """Take at most `limit` bytes from a stream."""
        descriptor, sink = run.fifos[place], run.sinks[place]
        while limit > 0:
            try:
                size = os.readv(descriptor, [self._buffer[: min(limit, PIPE)]])
            except BlockingIOError:
                return
            sink.write(self._buffer[:size])
            limit -= size
            if size < 65536:
                return
            if not run.wide[place]:
                run.wide[place] = True
                _widen(descriptor)

    def _note(self, kind: str, start_id: str, facts: Line) -> None:
        """A line that cannot be written is that run's trouble alone, and is tried again."""
        try:
            self._journal.note(kind, start_id, facts)
        except OSError:
            self._unwritten.append((kind, start_id, facts))

    def _never(self, start_id: str, why: Refused) -> None:
        self._tell({"t": "never", "s": start_id, "errno": why.errno, "stage": why.stage})


def _ended(pid: int) -> bool:
    """Is our child a zombie?"""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _held(descriptor: int) -> int:
    """How many bytes a FIFO holds now: a tree that writes for ever must not keep us reading."""
    size: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
    return size


def _widen(descriptor: int) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE)
    except OSError as error:  # this user's pipes hold all that they may
        if error.errno not in (errno.EPERM, errno.EBUSY, errno.ENOMEM):
            raise
