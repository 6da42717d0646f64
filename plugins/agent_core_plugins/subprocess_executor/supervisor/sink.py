"""The kept output of one stream: its head and its tail under a cap, in one file.

The file is a header, the first half of the cap, and a ring of the other half. It is made with the
first byte of output. Until the cap is reached the file's size tells what it holds; after that
each write of the ring is announced in the header before it and confirmed behind it, so that a
reader beside the writer, or of a file whose writer was killed, knows which bytes to leave out.
"""

from __future__ import annotations

import os
import struct

MAGIC = b"rgpuout2"
# Magic, size of the head, of the ring, announced, confirmed, and the check of those two.
HEADER = struct.Struct("<8sQQQQQ")
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Move = Callable[[int], int]


def check(announced: int, confirmed: int) -> int:
    """Tells a header that was read while it was written, half old and half new."""
    return (announced * 0x9E3779B97F4A7C15 + confirmed * 0xC2B2AE3D27D4EB4F + 1) % 2**64


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
        proof = check(announced, confirmed)
        return HEADER.pack(MAGIC, self._head, self._ring, announced, confirmed, proof)


def _write(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
