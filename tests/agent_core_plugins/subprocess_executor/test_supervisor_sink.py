"""The kept output: head and tail under the cap, whole characters at the cut, no torn writes."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_core_plugins.subprocess_executor import kept
from agent_core_plugins.subprocess_executor.supervisor import sink


def written(path: Path, cap: int, chunks: list[bytes]) -> kept.Kept:
    path.unlink(missing_ok=True)
    writer = sink.Sink(str(path), cap)
    for chunk in chunks:
        writer.write(memoryview(chunk))
    writer.close()
    return kept.read(str(path))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(6, 64),
    st.lists(st.binary(max_size=150).map(lambda b: bytes(x & 0x7F for x in b)), max_size=12),
)
def test_whatever_comes_in_whatever_pieces_head_and_tail_are_the_streams_own(
    tmp_path_factory: pytest.TempPathFactory, cap: int, chunks: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "sink"
    whole = b"".join(chunks)
    found = written(path, cap, chunks)
    assert found.seen == len(whole)
    text, dropped = found.merged()
    if len(whole) <= cap:
        assert (text, dropped) == (whole, 0)
    else:
        head, tail = whole[: cap // 2], whole[-(cap - cap // 2) :]
        dropped_really = len(whole) - cap
        marker = b"\n...[truncated, %d bytes dropped]\n" % dropped_really
        assert (text, dropped) == (head + marker + tail, dropped_really)
        assert path.stat().st_size == sink.HEADER.size + cap
    assert kept.tail(str(path), 3) == whole[-3:]


def header(half: int, announced: int, confirmed: int) -> bytes:
    proof = sink.check(announced, confirmed)
    return sink.HEADER.pack(sink.MAGIC, half, half, announced, confirmed, proof)


def test_without_output_there_is_no_file(tmp_path: Path) -> None:
    found = written(tmp_path / "sink", 100, [])
    assert found.merged() == (b"", 0)
    assert not (tmp_path / "sink").exists()
    assert kept.tail(str(tmp_path / "sink"), 10) == b""


def test_a_character_that_the_cut_went_through_is_left_out_and_counted(tmp_path: Path) -> None:
    text = ("ä" * 5 + "€" * 40 + "🚀" * 5).encode()
    for cap in range(9, 60):
        merged, dropped = written(tmp_path / "sink", cap, [text]).merged()
        merged.decode()
        head, _, rest = merged.partition(b"\n...[truncated, ")
        tail = rest.partition(b"]\n")[2]
        assert len(head) + len(tail) + dropped == len(text)
        assert text.startswith(head)
        assert text.endswith(tail)


def test_bytes_that_are_no_text_are_kept_as_they_are(tmp_path: Path) -> None:
    data = bytes(range(256))
    assert written(tmp_path / "sink", 256, [data]).merged() == (data, 0)


def test_a_writer_killed_between_two_writes_leaves_only_what_is_sure(tmp_path: Path) -> None:
    path = tmp_path / "sink"
    whole = b"".join(b"%03d" % number for number in range(100))
    written(path, 60, [whole])
    before = path.read_bytes()
    # Killed after 12 more bytes were announced and 5 of them written over the oldest.
    announced = header(30, len(whole) + 12, len(whole))
    place = sink.HEADER.size + 30 + (len(whole) - 30) % 30
    torn = bytearray(announced + before[sink.HEADER.size :])
    torn[place : place + 5] = b"newer"
    path.write_bytes(torn)
    found = kept.read(str(path))
    assert found.head == whole[:30]
    assert found.tail == whole[-18:]
    assert found.merged()[1] == len(whole) - 48


def test_a_file_system_without_room_costs_output_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "directory"
    writer = sink.Sink(str(path), 100)
    writer.write(memoryview(b"hello"))
    writer.write(memoryview(b"again"))
    assert writer.total == 10
    assert writer.error
    assert kept.read(str(path)).merged(writer.total) == (
        b"\n...[truncated, 10 bytes dropped]\n",
        10,
    )


def test_another_file_is_not_taken_for_kept_output(tmp_path: Path) -> None:
    path = tmp_path / "sink"
    path.write_bytes(b"x" * 100)
    with pytest.raises(OSError, match="not a file of kept output"):
        kept.read(str(path))


# --- beside the writer


def follow(path: Path, offset: int, whole: bytes, sizes: list[int]) -> list[kept.Piece]:
    """Read on from `offset` until nothing more is there, in pieces of these sizes."""
    pieces = []
    while True:
        size = sizes[len(pieces) % len(sizes)]
        piece = kept.piece(str(path), offset, size)
        assert piece.offset >= offset
        assert len(piece.data) <= size
        assert piece.data == whole[piece.offset : piece.offset + len(piece.data)]
        if not piece.data:
            assert offset >= piece.total
            return pieces
        pieces.append(piece)
        offset = piece.offset + len(piece.data)


@settings(max_examples=150, deadline=None)
@given(
    cap=st.integers(6, 64),
    chunks=st.lists(st.binary(max_size=150), max_size=12),
    pauses=st.lists(st.booleans(), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_what_is_followed_piece_by_piece_agrees_with_what_is_kept_at_the_end(
    tmp_path_factory: pytest.TempPathFactory,
    cap: int,
    chunks: list[bytes],
    pauses: list[bool],
    sizes: list[int],
) -> None:
    path = tmp_path_factory.getbasetemp() / "followed"
    path.unlink(missing_ok=True)
    whole = b"".join(chunks)
    writer = sink.Sink(str(path), cap)
    seen: dict[int, int] = {}  # every byte that was read, by its place
    offset = 0
    for number, chunk in enumerate(chunks):
        writer.write(memoryview(chunk))
        if pauses[number % len(pauses)]:
            for piece in follow(path, offset, whole, sizes):
                seen.update(enumerate(piece.data, piece.offset))
                offset = piece.offset + len(piece.data)
            assert offset == writer.total
    writer.close()
    for piece in follow(path, offset, whole, sizes):
        seen.update(enumerate(piece.data, piece.offset))
    found = kept.read(str(path))
    for place, byte in enumerate(found.head):
        assert seen[place] == byte
    for place, byte in enumerate(found.tail, found.seen - len(found.tail)):
        assert seen[place] == byte


def test_a_reader_beside_a_writer_that_overtakes_it_never_sees_a_wrong_byte(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "sink")
    cap, number = 4096, 40_000
    done = threading.Event()

    def write() -> None:
        writer = sink.Sink(path, cap)
        for first in range(0, number, 40):
            words = b"".join(b"%07d " % word for word in range(first, first + 40))
            writer.write(memoryview(words))
        writer.close()
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    offset = read = 0
    try:
        while not done.is_set() or offset < 8 * number:
            piece = kept.piece(path, offset, 3000)
            first = piece.offset // 8
            words = b"".join(b"%07d " % word for word in range(first, first + 377))
            begin = piece.offset - 8 * first
            assert piece.data == words[begin : begin + len(piece.data)]
            offset = piece.offset + len(piece.data)
            read += len(piece.data)
    finally:
        thread.join()
    assert cap <= read <= 8 * number


def test_what_a_write_in_progress_may_have_reached_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sink"
    whole = b"".join(b"%03d" % number for number in range(100))
    written(path, 60, [whole])
    body = path.read_bytes()[sink.HEADER.size :]
    path.write_bytes(header(30, len(whole) + 12, len(whole)) + body)
    assert kept.piece(str(path), 30, 100) == (len(whole) - 18, whole[-18:], len(whole))
    path.write_bytes(header(30, len(whole) + 90, len(whole)) + body)
    assert kept.piece(str(path), 30, 100).data == b""
    assert kept.piece(str(path), 0, 100).data == whole[:30]


def test_a_header_half_old_and_half_new_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "sink"
    written(path, 60, [b"x" * 100])
    old, new = header(30, 100, 100), header(30, 700, 650)
    body = path.read_bytes()[sink.HEADER.size :]
    for cut in range(len(old) + 1):
        torn = old[:cut] + new[cut:]
        path.write_bytes(torn + body)
        if torn in (old, new):
            assert kept.piece(str(path), 0, 5).data == b"xxxxx"
        else:
            with pytest.raises(OSError, match="not a file of kept output"):
                kept.piece(str(path), 0, 5)
