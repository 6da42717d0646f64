"""A run's start: asked of a supervisor when it has a slot, or handed over ahead of that."""

import asyncio
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent_core import Ahead, Execution, Launch, NeverRan, NeverStarted, never_ran

from .execution import STREAMS, SubprocessExecution, Tools
from .known import Away, Known, Line
from .link import LINE_LIMIT, Link, LinkLost
from .orphan import look_for
from .supervisor.journal import encode

ASK_AGAIN = 1.0  # seconds between two questions whether a start began
START_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)  # it becomes a file name


@dataclass(frozen=True, kw_only=True, slots=True)
class Starter:
    """What every start of one agent works with."""

    tools: Tools
    cap: int  # bytes kept of each stream
    path: str  # PATH where a task gives none

    def request(self, launch: Launch, **more: object) -> bytes:
        """The line that asks the supervisor for it. Raises NeverRan."""
        if not START_ID.fullmatch(launch.start_id):
            raise NeverRan(f"{launch.start_id!r} is no start id: letters, digits, - and _ only")
        env = {**launch.env, "REMOTEGPU_START_ID": launch.start_id}
        text = "".join(env)
        if "" in env or "=" in text or "\0" in text or "\0" in "".join(env.values()):
            raise _unusable(env)
        if not launch.argv or any("\0" in text for text in (*launch.argv, launch.cwd)):
            raise NeverRan("a command cannot be empty or hold a NUL character")
        request = encode(
            {
                "t": "start",
                "s": launch.start_id,
                "argv": launch.argv,
                "file": launch.program,
                "env": env,
                "cwd": launch.cwd,
                "out": [self.tools.kept(launch.start_id, stream) for stream in STREAMS],
                "cap": self.cap,
                "passes": not launch.resources,  # what it held beside its slot is not for anybody
                **more,
            }
        )
        if len(request) > LINE_LIMIT:
            raise NeverRan("the command and its environment are larger than a system takes")
        return request

    def execution(self, start_id: str, known: Known) -> Execution:
        return SubprocessExecution(self.tools, start_id, known)

    async def found(self, start_id: str, known: Known) -> Execution | NeverStarted:
        """A run that somebody knows of: supervisor or journal."""
        if known.never:
            return NeverStarted()
        if known.facts is None and known.end is None:  # killed between the fork and its record
            facts = await look_for(start_id, self.tools.clock)
            known = replace(known, facts=facts)
        return self.execution(start_id, known)

    def never(self, launch: Launch, answer: Line, link: Link) -> NeverRan:
        """The supervisor's word that nothing began, as an error."""
        self.let_go(launch.start_id, answer, link)
        path = launch.env.get("PATH", self.path)
        return never_ran(
            answer["errno"], argv=launch.argv, cwd=launch.cwd, path=path, at=answer["stage"]
        )

    def let_go(self, start_id: str, answer: Line, link: Link) -> None:
        link.forget(start_id)
        if answer["stage"] == "fifo":
            self.tools.house.retire(link)  # its directory is gone or full: another for the next


class Start(Ahead):
    """One start, until it is awaited."""

    def __init__(self, starter: Starter, launch: Launch) -> None:
        self._starter = starter
        self._house = starter.tools.house
        self._launch = launch
        self._link: Link | None = None  # to whom it was handed over
        self._answer: asyncio.Future[Line] | None = None  # to that
        self._began: Callable[[], None] | None = None  # to be called, once

    def __await__(self) -> Generator[Any, None, Execution]:
        return self._begin().__await__()

    def hand_over(
        self, until: float, began: Callable[[], None], lost: Callable[[], None] = lambda: None
    ) -> bool:
        link = self._house.ready
        if link is None or not link.ahead or self._answer is not None:
            return False
        try:
            request = self._starter.request(self._launch, until=until)
            heard = (self._say_that_it_began, lost)
            self._answer = link.ask(self._launch.start_id, request, heard)
        except (LinkLost, NeverRan):  # whoever awaits it is told
            return False
        self._link, self._began = link, began
        return True

    def _say_that_it_began(self) -> None:
        began, self._began = self._began, None
        if began:
            began()

    async def recall(self) -> bool:
        while (link := self._link) is not None and (answer := self._answer) is not None:
            try:
                if not answer.done():
                    link.say("recall", self._launch.start_id)
                line = await asyncio.shield(answer)
                begun = line["t"] == "started"
                if line["t"] == "never":
                    self._starter.let_go(self._launch.start_id, line, link)
            except LinkLost:
                try:
                    begun = await self._find() is not None
                except (Away, OSError):
                    await self._starter.tools.clock.sleep(ASK_AGAIN)
                    continue
            if begun:
                self._say_that_it_began()
                return False
            if self._answer is answer:
                self._link = self._answer = self._began = None
        return True

    async def _begin(self) -> Execution:
        launch = self._launch
        while True:
            try:
                link, line = await self._asked_ahead() or await self._ask()
            except LinkLost:
                if found := await self._find():
                    return found
                continue  # nobody ever heard of it: another supervisor may begin it
            if line["t"] == "never":
                raise self._starter.never(launch, line, link)
            return self._starter.execution(launch.start_id, link.runs[launch.start_id])

    async def _ask(self) -> tuple[Link, Line]:
        """Raises LinkLost and NeverRan."""
        request = self._starter.request(self._launch)
        try:
            link = self._house.ready or await self._house.current()
        except OSError as error:
            raise NeverRan(f"no supervisor can be started: {error}", passing=True) from error
        return link, await link.start(self._launch.start_id, request)

    async def _asked_ahead(self) -> tuple[Link, Line] | None:
        """The answer, if it was handed over, and unless that did not do. Raises LinkLost."""
        link, answer = self._link, self._answer
        self._link = self._answer = self._began = None
        if link is None or answer is None:
            return None
        if not answer.done() and link.waits(self._launch.start_id):
            link.say("begin", self._launch.start_id)
        line = await asyncio.shield(answer)
        if line["t"] == "never" and line["stage"] == "fifo":
            self._starter.let_go(self._launch.start_id, line, link)
            return None
        return None if line["t"] == "recalled" else (link, line)

    async def _find(self) -> Execution | None:
        """What became of it when the link was lost; None: nothing began. Raises Away, OSError."""
        known = await self._house.find(self._launch.start_id)
        found = known and await self._starter.found(self._launch.start_id, known)
        return found if isinstance(found, Execution) else None


def _unusable(env: Mapping[str, str]) -> NeverRan:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            return NeverRan(f"the environment name {name!r} or its value cannot be used")
    raise AssertionError("somebody found one")
