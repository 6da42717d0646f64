"""The journal: what was intended, began and ended, one JSON line each, kept over a kill -9.

It lies on a tmpfs and is never synced: it must survive the death of its writer, not of the
machine. Room for what must still be written about the runs that live is reserved before an intent
is accepted, so that a full file system refuses new runs instead of losing the ends of old ones.
Unused room is NUL bytes; a torn last line is ignored.
"""

from __future__ import annotations

import json
import os

VERSION = 2
STEP = 64 * 1024  # bytes of room taken at a time, and the size below which nothing is compacted
ROOM = 1024  # bytes that one run may still write: its start, a mark and its end
LONGEST = 4096  # bytes of a line that a reader looks at
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Line = dict[str, Any]


class Record:
    """All that a journal says of one start."""

    __slots__ = ("end", "forgotten", "intended", "mark", "never", "start_id", "started")

    def __init__(self, start_id: str) -> None:
        self.start_id = start_id
        self.intended = False
        self.started: Line | None = None  # pid, ticks (its start time), wall, since (boot time)
        self.never: Line | None = None  # errno, stage
        self.end: Line | None = None  # status, user, system, rss, wall_s, at, out
        self.mark = ""  # the words that its first signal with words bore
        self.forgotten = False


class Book:
    """A journal as it was read: whose it is, and one record a start."""

    __slots__ = ("boot_id", "journal_id", "made", "records")

    def __init__(self, journal_id: str, boot_id: str, made: float) -> None:
        self.journal_id = journal_id
        self.boot_id = boot_id
        self.made = made  # seconds of boot time
        self.records: dict[str, Record] = {}


def create(path: str, journal_id: str, boot_id: str, made: float) -> None:
    """Begin a journal that does not exist yet. Raises OSError."""
    header = {"v": VERSION, "journal": journal_id, "boot": boot_id, "made": made}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(descriptor, encode(header), 0)
    finally:
        os.close(descriptor)


def read(path: str) -> Book | None:
    """What a journal says; None if it is no journal. Raises OSError if it cannot be opened.

    Whatever else the file holds is passed over: a line is believed only if it has the form that
    the writer gives it, and the first of each kind counts.
    """
    with open(path, "rb") as file:
        data = file.read()
    return parse(data)


def parse(data: bytes) -> Book | None:
    """`read`, of bytes."""
    lines = data.split(b"\n")
    header = _decode(lines[0]) if len(lines) > 1 else None
    if header is None or header.get("v") != VERSION:
        return None
    journal_id, boot_id, made = header.get("journal"), header.get("boot"), header.get("made")
    if not isinstance(journal_id, str) or not isinstance(boot_id, str):
        return None
    if not isinstance(made, float | int):
        return None
    book = Book(journal_id, boot_id, float(made))
    for raw in lines[1:-1]:
        line = _decode(raw)
        if line is not None:
            _enter(book, line)
    return book


def _enter(book: Book, line: Line) -> None:
    kind, start_id = line.get("k"), line.get("s")
    if not isinstance(start_id, str) or not isinstance(kind, str) or not _sound(kind, line):
        return
    record = book.records.setdefault(start_id, Record(start_id))
    if kind == "intent":
        record.intended = True
    elif kind == "started":
        record.started = record.started or line
    elif kind == "never":
        record.never = record.never or line
    elif kind == "end":
        record.end = record.end or line
    elif kind == "mark":
        record.mark = record.mark or line["mark"]
    elif kind == "forget":
        record.forgotten = True


def _sound(kind: str, line: Line) -> bool:
    """Does the line hold what its kind must hold?"""
    if kind in ("intent", "forget"):
        return True
    if kind == "never":
        return _whole(line.get("errno")) and isinstance(line.get("stage"), str)
    if kind == "mark":
        return isinstance(line.get("mark"), str)
    if kind == "started":
        numbers = _whole(line.get("pid")) and _whole(line.get("ticks"))
        return numbers and _number(line.get("wall")) and _number(line.get("since"))
    if kind == "end":
        out = line.get("out")
        counts = isinstance(out, list) and len(out) == 2 and all(map(_whole, out))
        figures = ("user", "system", "rss", "wall_s", "at")
        return counts and _whole(line.get("status")) and all(_number(line.get(n)) for n in figures)
    return False


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 2**63


def _decode(raw: bytes) -> Line | None:
    if not raw or len(raw) > LONGEST or raw[:1] != b"{":
        return None
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def encode(line: Line) -> bytes:
    """One line of a journal, or of the socket: no newline inside, ASCII only.

    Lines of which there are many are put together by hand where they are written: a start id is
    plain (see `plain`), and numbers are the same in JSON.
    """
    return _encoder.encode(line).encode("ascii") + b"\n"


_encoder = json.JSONEncoder(separators=(",", ":"), check_circular=False)


def plain(start_id: object) -> bool:
    """May it stand in a line and in a file name as it is?"""
    if type(start_id) is not str or not 0 < len(start_id) <= 64 or not start_id.isascii():
        return False
    return start_id.isalnum() or start_id.replace("-", "").replace("_", "").isalnum()


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """pwrite until everything is written. Raises OSError."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


class Journal:
    """The writer of one journal."""

    def __init__(self, path: str) -> None:
        """Go on with a journal that was created. Raises OSError, and ValueError if it is none."""
        self.path = path
        book = read(path)
        if book is None:
            raise ValueError(f"{path} is no journal")
        self.journal_id, self.boot_id = book.journal_id, book.boot_id
        self._lines: dict[str, bytes] = {}  # of the runs that are not forgotten
        with open(path, "rb") as file:
            data = file.read().rstrip(b"\0")
        self._header = data[: data.index(b"\n") + 1]
        self._live = len(self._header)  # bytes that a compaction would write
        self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._end = len(data)
        self._room = self._end
        if not data.endswith(b"\n"):
            write_all(self._file, b"\n", self._end)
            self._end += 1

    def intent(self, start_id: str) -> None:
        """Say that a start is about to be tried. Raises OSError, and nothing may be started."""
        self._reserve(ROOM * (len(self._lines) + 1))
        self._append(start_id, f'{{"k":"intent","s":"{start_id}"}}\n')

    def note(self, kind: str, start_id: str, facts: str) -> None:
        """Say what became of it: started, never, mark, or end. Raises OSError.

        `facts` are the members of a JSON object, without its braces.
        """
        self._append(start_id, f'{{"k":"{kind}","s":"{start_id}",{facts}}}\n')

    def forget(self, start_ids: list[str]) -> None:
        """Let go of the lines of some starts. Raises OSError; then they stay for now."""
        known = [start_id for start_id in start_ids if start_id in self._lines]
        if not known:
            return
        for start_id in known:
            self._live -= len(self._lines.pop(start_id))
        lines = [f'{{"k":"forget","s":"{start_id}"}}\n' for start_id in known]
        self._write("".join(lines).encode("ascii"))
        if self._end > STEP and self._end > 4 * self._live:
            self._compact()

    def _append(self, start_id: str, line: str) -> None:
        data = line.encode("ascii")
        self._write(data)
        self._lines[start_id] = self._lines.get(start_id, b"") + data  # for a later compaction
        self._live += len(data)

    def _write(self, data: bytes) -> None:
        write_all(self._file, data, self._end)
        self._end += len(data)

    def _reserve(self, size: int) -> None:
        """Have this much room behind the end, or raise OSError."""
        needed = self._end + size - self._room
        if needed > 0:
            try:
                os.posix_fallocate(self._file, self._room, max(needed, STEP))
                self._room += max(needed, STEP)
            except OSError:
                os.posix_fallocate(self._file, self._room, needed)
                self._room += needed

    def _compact(self) -> None:
        """Write what is still needed to a new file, and put it in the place of the old one."""
        beside = self.path + ".new"
        data = self._header + b"".join(self._lines.values())
        room = len(data) + ROOM * (len(self._lines) + 1)
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, room)
            write_all(file, data, 0)
            os.rename(beside, self.path)
        except OSError:
            os.close(file)
            raise
        os.close(self._file)
        self._file, self._end, self._room = file, len(data), room
