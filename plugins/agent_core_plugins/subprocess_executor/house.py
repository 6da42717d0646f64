"""The supervisors of one agent: their directories, who of them lives, and what they know."""

import asyncio
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping

from agent_core import PluginContext, PluginError, remove

from .connecting import connect
from .known import Away, Known
from .link import Link, LinkLost, Strange
from .registry import Registry, ours_alone
from .spawning import spawn
from .supervisor import journal

ASK_AGAIN = 10.0  # seconds until one that was there and did not answer is greeted again
SOCKET_PATH = 107  # bytes that the kernel takes


class House:
    """Finds, starts and forgets supervisors. Its directories are named for the agent's id."""

    def __init__(self, context: PluginContext, env: Mapping[str, str]) -> None:
        """`env` is what every run's environment begins with."""
        self._context = context
        self._env = env
        self._root = context.runtime_dir
        tag = hashlib.sha256(context.agent_id.encode()).hexdigest()[:8]
        self._prefix = f"sup-{tag}-"
        self._registry = Registry(context.state_dir / "supervisors")
        self._lock = asyncio.Lock()
        self._links: dict[str, Link] = {}  # to the living
        self._dead: dict[str, journal.Book] = {}
        self._silent: dict[str, float] = {}  # boot time before which it is not greeted again
        self._let_go: dict[str, list[str]] = {}  # forgotten while a link was down
        self._fresh: str | None = None  # has a journal, and no supervisor yet
        self._current: Link | None = None
        self._retired: set[Link] = set()
        self._closed = False
        self.missing: set[str] = set()
        try:
            self._settle_in()
        except OSError as error:
            raise PluginError(
                f"no supervisor can be started in {self._root}: {error.strerror};"
                " make it writable, or name another directory as agent.runtime_dir"
            ) from error

    # --- directories

    def _places(self) -> Iterator[str]:
        try:
            names = sorted(os.listdir(self._root))
        except FileNotFoundError:
            return
        for name in names:
            if name.startswith(self._prefix) and ours_alone(self._root / name):
                yield name

    def _settle_in(self) -> None:
        """Have a journal before any start is stored: a start that none knows then never began."""
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        boot_id = self._context.clock.boot_id
        self.missing = self._registry.names() - set(self._places())
        journals = 0
        for place in self._places():
            book = self._read(place)
            if book is None:
                self.missing |= {place} & self._registry.names()
            elif book.boot_id != boot_id:
                self._remove(place)  # of an earlier boot: every process of it is gone
            else:
                journals += 1
                if not os.path.lexists(self._root / place / "socket"):
                    self._fresh = place
        if not journals:
            self._fresh = self._make()
        if len(os.fsencode(self._root / f"{self._prefix}123456" / "socket")) > SOCKET_PATH:
            raise OSError(errno.ENAMETOOLONG, "the path of a socket in it would be too long")

    def _make(self) -> str:
        place = self._prefix + secrets.token_hex(3)
        directory = self._root / place
        directory.mkdir(mode=0o700)
        (directory / "f").mkdir(mode=0o700)
        clock = self._context.clock
        journal.create(
            str(directory / "journal"), secrets.token_hex(8), clock.boot_id, clock.boottime()
        )
        self._registry.add(place)
        return place

    def _read(self, place: str) -> journal.Book | None:
        if not ours_alone(self._root / place):
            return None
        try:
            return journal.read(str(self._root / place / "journal"))
        except OSError:
            return None

    def _remove(self, place: str) -> None:
        self._registry.remove(place)  # first: a name on the list must have its journal
        remove(str(self._root / place))

    # --- who lives

    @property
    def ready(self) -> Link | None:
        """The supervisor for new runs, if it is there."""
        link = self._current
        return None if link is None or link.lost or link.silent else link

    async def current(self) -> Link:
        """The supervisor for new runs; started if there is none. Raises OSError."""
        async with self._lock:
            await self._survey()
            if self.ready is None:
                fit = (one for one in self.living() if not (one in self._retired or one.silent))
                self._current = next(fit, None) or await self._start()
            assert self._current is not None
            return self._current

    def living(self) -> list[Link]:
        return [link for link in self._links.values() if not link.lost]

    async def survey(self) -> str:
        """Know of every directory whether its supervisor lives; the name of one that is away."""
        async with self._lock:
            return await self._survey()

    async def _survey(self) -> str:
        """Connect to those that are not connected; the name of one that is there and is silent."""
        away = "" if not self._closed else "any place"
        for place in self._places():
            link = self._links.get(place)
            if place in self._dead or place == self._fresh or (link and not link.lost):
                continue
            if self._context.clock.boottime() < self._silent.get(place, 0.0):
                away = place
                continue
            try:
                await self._meet(place)
            except (LinkLost, TimeoutError, BlockingIOError, Strange) as error:
                self._say_silent(place, str(error) or type(error).__name__)
                away = place
            else:
                if self._silent.pop(place, None) and place in self._links:
                    self._context.log.info("a supervisor answers again", place=place)
        return away

    def _say_silent(self, place: str, why: str) -> None:
        """Once; and nobody has to wait for it at each question."""
        if place not in self._silent:
            words = "a supervisor does not answer; its runs wait for it, new ones begin elsewhere"
            self._context.log.warning(words, place=place, why=why)
        self._silent[place] = self._context.clock.boottime() + ASK_AGAIN

    async def _meet(self, place: str) -> None:
        """Connect to the supervisor of a directory, or book it as dead."""
        book = self._read(place)
        if book is None:
            return
        try:
            link = await connect(self._root / place, book.journal_id, self._env)
        except (ConnectionRefusedError, FileNotFoundError):
            # Nobody listens, so nobody writes: what the journal says now is its last word.
            self._dead[place] = self._read(place) or book
            self._links.pop(place, None)
            self._say_gone(place)
            return
        self._links[place] = link
        for start_id in self._let_go.pop(place, ()):
            link.forget(start_id)

    def _say_gone(self, place: str) -> None:
        """One that had nothing to do leaves by itself; one that had runs was killed."""
        known = self._dead[place].records.values()
        runs = sum(each.end is None and each.never is None for each in known)
        say = self._context.log.warning if runs else self._context.log.info
        say("a supervisor is gone; its journal is kept", place=place, runs_without_an_end=runs)

    async def _start(self) -> Link:
        """Start a supervisor in a directory of its own, and greet it."""
        place = self._fresh or self._make()
        self._fresh = place
        directory = self._root / place
        self._fresh = None
        try:
            await asyncio.to_thread(spawn, directory)  # to its end, also if we are cancelled
        except OSError:
            if not os.path.lexists(directory / "socket"):
                self._fresh = place
            raise
        await self._meet(place)
        link = self._links.get(place)
        if link is None:
            raise OSError(
                errno.ECHILD,
                f"the supervisor ended as soon as it was started; {directory}/log says why",
            )
        self._context.log.info("started a supervisor", place=place, pid=link.pid)
        return link

    def retire(self, link: Link) -> None:
        """No new runs for this one."""
        if self._current is link:
            self._current = None
            self._retired.add(link)

    # --- what they know

    async def find(self, start_id: str) -> Known | None:
        """What is known of a start; None if nobody knows of it. Raises Away."""
        away = await self.survey()
        for link in self._links.values():
            if start_id in link.unanswered and not link.lost:
                raise Away("the supervisor has not answered yet whether it began")
            if start_id in link.runs:
                return link.runs[start_id]
        for place, book in self._dead.items():
            record = book.records.get(start_id)
            if record is not None:
                return Known(
                    place=place,
                    journal_id=book.journal_id,
                    facts=record.started,
                    end=record.end,
                    mark=record.mark,
                    never=record.never is not None,
                )
        if away:
            raise Away(f"the supervisor in {away} does not answer now")
        return None

    def was_there_before(self, boottime: float) -> bool:
        """Would a journal that is still here have taken in a start of that moment?"""
        books = [self._read(place) for place in self._registry.names()]
        return all(books) and any(book.made <= boottime for book in books if book)

    def forget(self, place: str, start_id: str) -> None:
        link = self._links.get(place)
        if link is not None and not link.lost:
            link.forget(start_id)
        elif place not in self._dead:
            self._let_go.setdefault(place, []).append(start_id)

    def tidy(self, wanted: Mapping[str, float]) -> None:
        """At start: remove the directories of dead supervisors that nobody will ask for.

        `wanted` are the starts that the store holds without an end, and the boot times at which
        they were stored. A journal goes when none of them stands in it and a living supervisor's
        is old enough to answer for them.
        """
        living = [self._read(place) for place, link in self._links.items() if not link.lost]
        oldest = min((book.made for book in living if book), default=float("inf"))
        if any(stored < oldest for stored in wanted.values()):
            return
        for place, book in tuple(self._dead.items()):
            if not wanted.keys() & book.records.keys():
                self._remove(place)
                del self._dead[place]
        if not wanted:
            self._registry.drop(self.missing)

    def ended(self) -> list[tuple[Link, str]]:
        """Runs whose ends wait to be forgotten."""
        return [
            (link, start_id)
            for link in self.living()
            for start_id, run in link.runs.items()
            if run.end is not None
        ]

    def knows(self, start_id: str) -> bool:
        """Does a living supervisor have it?"""
        return any(start_id in link.runs for link in self.living())

    def close(self) -> None:
        """Hang up; the supervisors go on."""
        self._closed = True
        for link in self._links.values():
            link.close()
