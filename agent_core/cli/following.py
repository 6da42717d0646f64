"""A task's output as it comes, through lost connections and retries, until the task has ended."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agent_core.api.wire import Code, Json
from agent_core.cli.exits import CommandFailed, Exit
from agent_core.cli.interrupts import held_back
from agent_core.cli.patience import Patience
from agent_core.cli.reading import Reading, Said
from agent_core.cli.viewers import STREAMS, Viewer, not_kept
from agent_core.cli.wait import FINAL
from agent_core.errors import Refused

if TYPE_CHECKING:
    from agent_core.api.client import Client
    from agent_core.api.replies import Log

FIRST_PAUSE: Final = 0.05  # seconds between two looks at a task whose run is over, growing
LAST_PAUSE: Final = 2.0

Task = Mapping[str, Json]


@dataclass(kw_only=True, slots=True)
class _Shown:
    """How much of one stream of a run has been shown."""

    offset: int = 0
    gaps: bool = False
    over: bool = False
    digest: Any = field(default_factory=hashlib.sha256)  # None: not all of it was seen


class Follower:
    """Shows a task's output from `run` and `offsets` on, run after run."""

    def __init__(
        self,
        client: "Client",
        task_id: str,
        viewer: Viewer,
        *,
        streams: Sequence[str] = STREAMS,
        run: int | None = None,
        offsets: Mapping[str, int] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._id = task_id
        self._viewer = viewer
        self._names = tuple(streams)
        self._run = self._asked = run
        self._shown = self._beginning(offsets or {})
        self._sleep = sleep
        self._away = False  # the control plane, as far as is known
        self._answered = 0.0  # the last time that the control plane did, by the monotonic clock
        self._quiet = False  # the run was over before the last empty answer
        self._there_since: float | None = None  # the run is known to be on record
        self._patience = Patience(
            away=self._lost,
            back=self._found,
            sleep=sleep,
        )

    def follow(self) -> dict[str, Json]:
        """The task as it ended. Ctrl-C says how to come back, and is raised again."""
        try:
            task = self._look()
            self._run = self._run or last_run(task)
            while True:
                self._there_since = None
                self._find(task)
                self._follow_run()
                task = self._next_run_or_end()
                if not self._newer(task):
                    self._say_if_never_begun(task)
                    return task
                self._run = (self._run or 0) + 1
                self._shown = self._beginning({})
                self._viewer.say(f"run {self._run} follows")
        except KeyboardInterrupt:
            self._viewer.say(f"the task goes on; come back with: {self.way_back()}")
            raise

    def _say_if_never_begun(self, task: Task) -> None:
        if self._asked is not None and self._asked > _listed(task):
            self._viewer.say(
                f"run {self._asked} never began: the task has ended; see: remotegpu task {self._id}"
            )

    def way_back(self) -> str:
        """The command that goes on where this one stopped."""
        words = ["remotegpu logs -f", self._id]
        if self._run is not None:
            words.append(f"--run {self._run}")
        if len(self._names) == 1:
            words.append(f"--stream {self._names[0]}")
        offsets = [self._shown[name].offset for name in self._names]
        if any(offsets):
            words.append(f"--offset {':'.join(map(str, offsets))}")
        return " ".join(words)

    def _beginning(self, offsets: Mapping[str, int]) -> dict[str, _Shown]:
        shown = {name: _Shown(offset=offsets.get(name, 0)) for name in self._names}
        for each in shown.values():
            if each.offset:
                each.digest = None
        return shown

    def _look(self) -> dict[str, Json]:
        return self._patience.ask(lambda: self._client.task(self._id))

    def _newer(self, task: Task) -> bool:
        return _listed(task) > (self._run or 0)

    def _over(self, task: Task) -> bool:
        return task["status"] in FINAL or self._newer(task)

    def _next_run_or_end(self) -> dict[str, Json]:
        """The task, when it has ended or another run of it has begun."""
        pause = FIRST_PAUSE
        while True:
            task = self._look()
            if self._over(task):
                return task
            self._sleep(pause)
            pause = min(pause * 1.5, LAST_PAUSE)

    def _follow_run(self) -> None:
        """Every stream of one run, until each has ended."""
        self._quiet = False
        begin = {name: shown.offset for name, shown in self._shown.items()}
        reading = Reading(self._client, self._id, self._run, begin)
        try:
            while not all(shown.over for shown in self._shown.values()):
                self._take(reading.next())
        finally:
            reading.stop()

    def _take(self, said: Said) -> None:
        if said.lost is not None:
            if said.at > self._answered:  # else somebody has had an answer since
                self._lost(said.lost)
            return
        self._found()
        if said.refused is not None:
            self._shown[said.stream].over = self._judge(said.refused, said.at)
        elif said.piece is not None:
            self._show(said.stream, said.piece)

    def _judge(self, refused: Exception, asked: float) -> bool:
        """Whether a refusal means that this run will never be. Raises it if it means more."""
        if not isinstance(refused, Refused) or refused.business_code != Code.INVALID:
            raise refused
        if self._there_since is not None and asked > self._there_since:
            raise refused  # something else is wrong with what was asked
        task = self._look()
        self._find(task)
        return task["status"] in FINAL and self._there_since is None

    def _find(self, task: Task) -> None:
        """Learn whether the run is on record."""
        if self._run is not None and self._run > _listed(task):
            self._there_since = None
        elif self._there_since is None:
            self._there_since = time.monotonic()

    def _show(self, name: str, piece: "Log") -> None:
        shown = self._shown[name]
        if piece.offset > shown.offset:
            self._viewer.say(not_kept(name, piece.offset - shown.offset))
            shown.gaps, shown.digest = True, None
        with held_back():  # else nobody knew where to go on
            self._viewer.show(self._run, name, piece)
            shown.offset = max(shown.offset, piece.next_offset)
        if shown.digest is not None:
            shown.digest.update(piece.data)
        if piece.eof:
            self._end(name, piece)
        elif not piece.data:
            # A server that forgot how the stream ended must not be asked for ever.
            shown.over, self._quiet = self._quiet, self._over(self._look())

    def _end(self, name: str, piece: "Log") -> None:
        shown = self._shown[name]
        shown.over = True
        if piece.dropped != 0:
            if not shown.gaps:
                self._viewer.say(not_kept(name, piece.dropped))
        elif shown.digest is not None and piece.sha256:
            self._compare(name, shown.digest.hexdigest(), piece.sha256.lower())

    def _compare(self, name: str, seen: str, kept: str) -> None:
        """Raises CommandFailed where what was shown is not what the control plane keeps."""
        if seen != kept and self._is_whole(name):
            of_run = "" if self._run is None else f" --run {self._run}"
            raise CommandFailed(
                f"what came of {name} is not what the control plane keeps (sha256 {seen}, not "
                f"{kept}); read it again with: remotegpu logs {self._id}{of_run} --stream {name}",
                Exit.FAILED,
            )

    def _is_whole(self, name: str) -> bool:
        """Whether all of it was kept: of much output the middle goes when the run has ended."""
        offset = 0
        while True:
            piece = self._patience.ask(
                lambda at=offset: self._client.logs(  # type: ignore[misc]
                    self._id, stream=name, run=self._run, offset=at
                )
            )
            if piece.offset > offset or (piece.eof and piece.dropped != 0):
                return False
            if piece.eof or piece.next_offset <= offset:
                return True
            offset = piece.next_offset

    def _lost(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            self._viewer.say(f"{error}; still following")

    def _found(self) -> None:
        self._answered = time.monotonic()
        if self._away:
            self._away = False
            self._viewer.say("the control plane answers again")


def last_run(task: Task) -> int | None:
    """The number of the task's last run; the first one's while it may still begin."""
    return _listed(task) or (None if task["status"] in FINAL else 1)


def _listed(task: Task) -> int:
    """The number of the last run on record; 0 if there is none."""
    runs = task.get("runs")
    numbers: list[int] = [
        each["run_no"]
        for each in (runs if isinstance(runs, list) else [])
        if isinstance(each, dict) and isinstance(each.get("run_no"), int)
    ]
    return max(numbers, default=0)
