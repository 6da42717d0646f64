"""The runs: from a start to its end, told only when nothing of its tree is left."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
import time

from . import tree
from .ahead import Ahead
from .journal import Journal
from .run import Run
from .spawn import Refused, Spawner
from .strays import Strays, kill
from .streams import PIPE, Streams

GATHER = 0.002  # seconds for which a run's beginning may wait, to be told with its end
FOLLOW_AGAIN = 1.0  # seconds between two tries to have a run's output awaited
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .journal import Line

    Tell = Callable[[str, bool], None]


class Runs:
    """Every run of this supervisor.

    What is told bears whether somebody waits for it, or it may be told together with what follows:
    never later than `settle`.
    """

    def __init__(self, journal: Journal, spawner: Spawner, epoll: select.epoll, tell: Tell) -> None:
        self._journal = journal
        self._spawner = spawner
        self._tell = tell
        self._streams = Streams(epoll, spawner.high)
        self._runs: dict[str, Run] = {}
        self._mains: dict[int, Run] = {}  # by the pid of a main process that was not reaped
        self._young: dict[str, Run] = {}  # began just now: not told yet, their output not awaited
        self._young_until = 0.0
        self._ending: dict[str, Run] = {}  # ended, and their trees are looked through
        self._strays = Strays()
        self._ahead = Ahead()
        self._started = tree.StartTimes()
        self._unwritten: list[tuple[str, str, str]] = []

    # --- what the agent asks

    def start(self, asked: Line, env: dict[str, str]) -> bool:
        """Start what is asked, once: the same id again is answered with what became of it."""
        start_id = asked["s"]
        if start_id in self._runs:
            self._young.pop(start_id, None)
            self._tell(self._runs[start_id].started(), True)
            return True
        try:
            self._journal.intent(start_id)
        except OSError as error:
            self._never(start_id, Refused(error.errno or 0, "journal"))
            return False
        run = Run(start_id, asked["out"], asked["cap"])
        run.passes = asked.get("passes") is True
        try:
            run.pid, run.fifos = self._spawner.start(
                start_id, asked["argv"], env, asked["cwd"], asked.get("file", "")
            )
        except Refused as refused:
            self._note("never", start_id, f'"errno":{refused.errno},"stage":"{refused.stage}"')
            self._never(start_id, refused)
            return False
        run.ticks = self._started.of(run.pid, run.boot)
        self._runs[start_id] = self._mains[run.pid] = run
        self._note("started", start_id, run.identity())
        if not self._young:
            self._young_until = time.monotonic() + GATHER
        self._young[start_id] = run
        return True

    def hand_over(self, asked: Line, env: dict[str, str]) -> None:
        """Start it when a run has ended that passes its place on."""
        if asked["s"] in self._runs:
            self.start(asked, env)
        elif not self._ahead.put(asked, env):
            self._recalled(asked["s"])

    def begin(self, start_id: str) -> None:
        """Start now what was handed over; if it began by itself, that is told."""
        if waiting := self._ahead.take(start_id):
            self.start(*waiting)
        elif young := self._young.pop(start_id, None):
            self._tell(young.started(), True)

    def recall(self, start_id: str) -> None:
        """Forget what was handed over; if it began by itself, that is told."""
        if self._ahead.take(start_id):
            self._recalled(start_id)
        else:
            self.begin(start_id)

    def abandon(self) -> None:
        """The agent is gone, or another one: nothing begins any more that it did not ask for."""
        self._ahead.clear()
        for run in self._runs.values():
            run.passes = False

    def signal(self, start_id: str, signum: int, mark: str) -> bool:
        """Signal the whole tree. False if the main process had ended by itself.

        `mark`, words as JSON, tells a later agent why: journalled before it is acted on.
        """
        run = self._runs.get(start_id)
        if run is None or run.pid not in self._mains or _ended(run.pid):
            return False
        run.passes = False  # who ends it says what follows
        if mark and not run.mark:
            run.mark = mark
            self._note("mark", start_id, f'"mark":{mark}')
        tree.send_group(run.pid, signum)
        self._look_for_strays()
        everything = tree.snapshot()
        for pid in tree.family(everything, {run.pid} | self._strays.of(start_id)):
            one = everything.get(pid)
            if one is not None and one.group != run.pid:
                tree.send(one, signum)
        return True

    def forget(self, start_ids: list[str]) -> None:
        """The agent has committed their ends."""
        gone = []
        for start_id in start_ids:
            run = self._runs.get(start_id)
            if run is None or not run.owed:  # else it lives: whatever was meant, it is kept
                self._runs.pop(start_id, None)
                gone.append(start_id)
        try:
            self._journal.forget(gone)
        except OSError:
            return  # its lines stay until the next compaction

    def all(self) -> str:
        """What is told of each, as the items of a JSON list."""
        return ",".join(f"{{{run.told()}}}" for run in self._runs.values())

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
        self._streams.read(descriptor, PIPE)

    def patience(self) -> float | None:
        """Seconds until `settle` has to be called; None: until something happens."""
        return max(0.0, self._young_until - time.monotonic()) if self._young else None

    def settle(self) -> None:
        """Tell of the young runs that go on, and wait for their output from now on."""
        young, self._young = self._young, {}
        for run in young.values():
            self._tell(run.started(), True)
            try:
                self._streams.follow(run)
            except OSError:  # this user's epoll sets hold all that they may: tried again
                self._young[run.start_id] = run
                self._young_until = time.monotonic() + FOLLOW_AGAIN

    def reap(self) -> None:
        """Some child has ended: a main process, or one that was adopted."""
        while self.busy():
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
        """What the FIFOs hold, then the status, then the journal; the tree comes after.

        Whoever it leaves behind is our child by now; if we have none but main processes, there is
        nobody.
        """
        alone = self._strays.none_beside(len(self._mains))
        if not alone:
            tree.send_group(run.pid, signal.SIGKILL)  # while its number cannot be anybody else's
        for place, descriptor in enumerate(run.fifos):
            held = _held(descriptor)
            if held:
                self._streams.take(run, place, held)
            self._streams.drop(descriptor)
        _, status, used = os.wait4(run.pid, 0)
        del self._mains[run.pid]
        self._spawner.remove(run.start_id)
        run.ended(status, used)
        self._note("end", run.start_id, run.end)
        if alone:
            self._tell_end(run)
        else:
            self._ending[run.start_id] = run

    def _finish(self, run: Run) -> None:
        """Nothing of it is left."""
        del self._ending[run.start_id]
        self._strays.ended(run.start_id)
        self._tell_end(run)

    def _tell_end(self, run: Run) -> None:
        if self._young.pop(run.start_id, None):
            self._tell(run.started(), False)
        run.owed = False
        then = ""
        try:
            waiting = self._ahead.next() if run.passes else None
            if waiting and self.start(*waiting):
                then = f',"next":"{waiting[0]["s"]}"'
        finally:
            soon = not then or self._ahead.short()
            self._tell(f'"t":"end","s":"{run.start_id}","end":{{{run.end}}}{then}', soon)

    def _look_for_strays(self) -> bool:
        """Adopted children: are there any?"""
        untold = (*self._mains.values(), *self._ending.values())
        leaders = {run.pid: run.start_id for run in untold}
        return self._strays.look(self._mains, leaders, self._runs)

    def _note(self, kind: str, start_id: str, facts: str) -> None:
        """A line that cannot be written is that run's trouble alone, and is tried again."""
        try:
            self._journal.note(kind, start_id, facts)
        except OSError:
            self._unwritten.append((kind, start_id, facts))

    def _never(self, start_id: str, why: Refused) -> None:
        self._tell(f'"t":"never","s":"{start_id}","errno":{why.errno},"stage":"{why.stage}"', True)

    def _recalled(self, start_id: str) -> None:
        self._tell(f'"t":"recalled","s":"{start_id}"', True)


def _ended(pid: int) -> bool:
    """Is our child a zombie?"""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _held(descriptor: int) -> int:
    """How many bytes a FIFO holds now: a tree that writes for ever must not keep us reading."""
    size: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
    return size
