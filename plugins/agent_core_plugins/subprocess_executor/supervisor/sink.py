"""The kept output of one stream: its head and its tail under a cap, in one file.

The file is a header, the first half of the cap, and a ring of the other half. It is made with the
first byte of output. Until the cap is reached the file's size tells what it holds; after that
each write of the ring is announced in the header before it and confirmed behind it, so that a
reader of a file whose writer was killed knows which bytes to leave out.
"""

from __future__ import annotations

import os
import struct

MAGIC = b"rgpuout1"
HEADER = struct.Struct("<8sQQQQ")  # magic, size of the head, of the ring, announced, confirmed
CUT = 3  # bytes of a UTF-8 character that may stand before or behind a cut
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Move = Callable[[int], int]


class Sink:
    """The writer."""

    __slots__ = ("_broken", "_file", "_head", "_move", "_path", "_ring", "error", "total")

    def __init__(self, path: str, cap: int, move: Move | None = None) -> None:
        """`move` may give an open file another number, away from where room is needed."""
        self._path = path
        self._move = move
        self._head = cap // 2
        self._ring = cap - self._head
        self._file = -1
        self._broken = False
        self.error = 0  # errno of the write that failed; nothing is kept from there on
        self.total = 0  # bytes seen, kept or not

    def write(self, data: memoryview) -> None:
        """Keep what is to be kept of `data`; an error of the file is remembered, never raised."""
        position = self.total
        self.total += len(data)
        if self._broken:
            return
        try:
            self._keep(data, position)
        except OSError as error:
            self._broken, self.error = True, error.errno or 0

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._broken = True

    def _keep(self, data: memoryview, position: int) -> None:
        if self._file < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            file = os.open(self._path, flags, 0o600)
            self._file = self._move(file) if self._move else file
            _write(self._file, memoryview(self._header(0, 0)), 0)
        room = self._head + self._ring - position
        if room > 0:
            _write(self._file, data[:room], HEADER.size + position)
            data, position = data[room:], position + min(room, len(data))
        if data:
            self._turn(data, position)

    def _turn(self, data: memoryview, position: int) -> None:
        """Write into the ring, where only the last `ring` bytes can matter."""
        end = position + len(data)
        data = data[-self._ring :]
        place = (end - len(data) - self._head) % self._ring
        base = HEADER.size + self._head
        _write(self._file, memoryview(self._header(end, position)), 0)
        until_edge = self._ring - place
        _write(self._file, data[:until_edge], base + place)
        _write(self._file, data[until_edge:], base)
        _write(self._file, memoryview(self._header(end, end)), 0)

    def _header(self, announced: int, confirmed: int) -> bytes:
        return HEADER.pack(MAGIC, self._head, self._ring, announced, confirmed)


class Kept:
    """What a file holds of a stream."""

    __slots__ = ("head", "seen", "tail")

    def __init__(self, head: bytes, tail: bytes, seen: int) -> None:
        self.head = head
        self.tail = tail  # behind the gap; empty if there is none
        self.seen = seen  # bytes of the stream that the writer had confirmed

    def merged(self, total: int | None = None) -> tuple[bytes, int]:
        """Head, a marker with the number of bytes between, and tail; and that number.

        `total` is how long the stream really was, if that is known better than by the file.
        """
        total = max(total or 0, self.seen)
        dropped = total - len(self.head) - len(self.tail)
        if dropped <= 0:
            return self.head + self.tail, 0
        head, tail = _whole_end(self.head), _whole_start(self.tail)
        dropped = total - len(head) - len(tail)
        return b"%s\n...[truncated, %d bytes dropped]\n%s" % (head, dropped, tail), dropped


def read(path: str) -> Kept:
    """What was kept of a stream; nothing if there was no output. Raises OSError."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return Kept(b"", b"", 0)
    if len(data) < HEADER.size:
        return Kept(b"", b"", 0)
    magic, head, ring, announced, confirmed = HEADER.unpack_from(data)
    body = data[HEADER.size :]
    if magic != MAGIC or len(body) > head + ring:
        raise OSError(0, "not a file of kept output", path)
    if announced == 0:
        return Kept(body, b"", len(body))
    turned = body[head:]
    place = (confirmed - head) % ring
    tail = turned[place:] + turned[:place]  # oldest first
    torn = min(announced - confirmed, ring)  # the oldest ones may hold newer bytes already
    return Kept(body[:head], tail[torn:], confirmed)


def tail(path: str, limit: int) -> bytes:
    """The last bytes so far, at most `limit`. Raises OSError."""
    try:
        with open(path, "rb") as file:
            start = file.read(HEADER.size)
            if len(start) == HEADER.size and HEADER.unpack(start)[3] == 0:  # nothing dropped yet
                size = file.seek(0, os.SEEK_END)
                file.seek(max(HEADER.size, size - limit))
                return file.read(limit)
    except FileNotFoundError:
        return b""
    kept = read(path)
    return (kept.tail or kept.head)[-limit:] if limit > 0 else b""


def _write(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _whole_end(data: bytes) -> bytes:
    """Without the first bytes of a UTF-8 character whose rest was cut off."""
    for back in range(1, min(CUT, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if length > back else data
        if byte < 0x80:
            break
    return data


def _whole_start(data: bytes) -> bytes:
    """Without the last bytes of a UTF-8 character whose beginning was cut off."""
    start = 0
    while start < min(CUT, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:]
