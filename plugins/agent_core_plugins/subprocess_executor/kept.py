"""What a file of kept output holds, also while the supervisor writes it.

A reader is never waited for and takes no lock. It looks at the header before and behind its read
of the ring: whatever a write that was announced meanwhile may have reached is left out.
"""

import os

from agent_core import Piece

from .supervisor.sink import HEADER, MAGIC, check

CUT = 3  # bytes of a UTF-8 character that may stand before or behind a cut
LOOKS = 100  # tries to see a header that is not just being written
LAPS = 3  # tries to read from a ring whose writer is faster


class Kept:
    """What a file holds of a stream whose writer is gone."""

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
    magic, head, ring, announced, confirmed, proof = HEADER.unpack_from(data)
    body = data[HEADER.size :]
    if magic != MAGIC or len(body) > head + ring or proof != check(announced, confirmed):
        raise OSError(0, "not a file of kept output", path)
    if announced == 0:
        return Kept(body, b"", len(body))
    turned = body[head:]
    place = (confirmed - head) % ring
    tail = turned[place:] + turned[:place]  # oldest first
    torn = min(announced - confirmed, ring)  # the oldest ones may hold newer bytes already
    return Kept(body[:head], tail[torn:], confirmed)


def piece(path: str, offset: int, limit: int) -> Piece:
    """At most `limit` bytes of a stream from `offset` on, and how long it is so far.

    Bytes that are gone are passed over, so the piece may begin behind `offset`. Raises OSError.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Piece(offset, b"", 0)
    try:
        return _piece(file, path, max(offset, 0), max(limit, 0))
    finally:
        os.close(file)


def tail(path: str, limit: int) -> bytes:
    """The last bytes so far, at most `limit`. Raises OSError."""
    end = piece(path, 0, 0).total
    offset, last = end - limit, b""
    while offset < end:
        found = piece(path, offset, end - offset)
        if not found.data:
            break
        last = last + found.data if found.offset == offset else found.data
        offset = found.offset + len(found.data)
    return last


def _piece(file: int, path: str, offset: int, limit: int) -> Piece:
    total = 0
    for _ in range(LAPS):
        state = _State.of(file, path)
        if state is None:
            return Piece(offset, b"", 0)
        total = state.total
        if offset >= total:
            return Piece(offset, b"", total)
        if offset < state.head:
            size = min(limit, min(state.head, total) - offset)
            return Piece(offset, os.pread(file, size, HEADER.size + offset), total)
        offset = max(offset, state.oldest)
        data = _ring(file, state, offset, max(0, min(limit, total - offset)))
        after = _State.of(file, path)
        gone = after.oldest - offset if after is not None else 0
        if gone < len(data) or gone <= 0:
            return Piece(offset + max(gone, 0), data[max(gone, 0) :], total)
        offset += gone  # all of it may hold newer bytes: lapped
    return Piece(offset, b"", max(total, offset))


def _ring(file: int, state: "_State", offset: int, size: int) -> bytes:
    """Bytes of the ring, in one or two parts."""
    place = (offset - state.head) % state.ring
    base = HEADER.size + state.head
    first = os.pread(file, min(size, state.ring - place), base + place)
    if len(first) < size and place + len(first) == state.ring:
        first += os.pread(file, size - len(first), base)
    return first


class _State:
    """A file's header at one moment, and how far the stream had come at least."""

    __slots__ = ("head", "oldest", "ring", "total")

    def __init__(self, head: int, ring: int, announced: int, total: int) -> None:
        self.head = head
        self.ring = ring
        self.total = total  # bytes up to here were written
        self.oldest = max(head, announced - ring)  # of the ring's; older ones may be overwritten

    @classmethod
    def of(cls, file: int, path: str) -> "_State | None":
        """None: nothing was written yet. Raises OSError if this is something else."""
        for _ in range(LOOKS):
            # The size first: a body that has grown since belongs to a later header.
            size = os.fstat(file).st_size - HEADER.size
            start = os.pread(file, HEADER.size, 0)
            if len(start) < HEADER.size or size < 0:
                return None
            magic, head, ring, announced, confirmed, proof = HEADER.unpack(start)
            if magic != MAGIC:
                break
            if proof == check(announced, confirmed):
                written = min(size, head + ring) if announced == 0 else confirmed
                return cls(head, ring, announced, written)
        raise OSError(0, "not a file of kept output", path)


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
