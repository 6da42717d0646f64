"""The kept output: head and tail under the cap, whole characters at the cut, no torn writes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_core_plugins.subprocess_executor.supervisor import sink


def kept(path: Path, cap: int, chunks: list[bytes]) -> sink.Kept:
    path.unlink(missing_ok=True)
    writer = sink.Sink(str(path), cap)
    for chunk in chunks:
        writer.write(memoryview(chunk))
    writer.close()
    return sink.read(str(path))


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
    found = kept(path, cap, chunks)
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
    assert sink.tail(str(path), 3) == whole[-3:]


def test_without_output_there_is_no_file(tmp_path: Path) -> None:
    found = kept(tmp_path / "sink", 100, [])
    assert found.merged() == (b"", 0)
    assert not (tmp_path / "sink").exists()
    assert sink.tail(str(tmp_path / "sink"), 10) == b""


def test_a_character_that_the_cut_went_through_is_left_out_and_counted(tmp_path: Path) -> None:
    text = ("ä" * 5 + "€" * 40 + "🚀" * 5).encode()
    for cap in range(9, 60):
        merged, dropped = kept(tmp_path / "sink", cap, [text]).merged()
        merged.decode()
        head, _, rest = merged.partition(b"\n...[truncated, ")
        tail = rest.partition(b"]\n")[2]
        assert len(head) + len(tail) + dropped == len(text)
        assert text.startswith(head)
        assert text.endswith(tail)


def test_bytes_that_are_no_text_are_kept_as_they_are(tmp_path: Path) -> None:
    data = bytes(range(256))
    assert kept(tmp_path / "sink", 256, [data]).merged() == (data, 0)


def test_a_writer_killed_between_two_writes_leaves_only_what_is_sure(tmp_path: Path) -> None:
    path = tmp_path / "sink"
    whole = b"".join(b"%03d" % number for number in range(100))
    kept(path, 60, [whole])
    before = path.read_bytes()
    # Killed after 12 more bytes were announced and 5 of them written over the oldest.
    announced = sink.HEADER.pack(sink.MAGIC, 30, 30, len(whole) + 12, len(whole))
    place = sink.HEADER.size + 30 + (len(whole) - 30) % 30
    torn = bytearray(announced + before[sink.HEADER.size :])
    torn[place : place + 5] = b"newer"
    path.write_bytes(torn)
    found = sink.read(str(path))
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
    assert sink.read(str(path)).merged(writer.total) == (
        b"\n...[truncated, 10 bytes dropped]\n",
        10,
    )


def test_another_file_is_not_taken_for_kept_output(tmp_path: Path) -> None:
    path = tmp_path / "sink"
    path.write_bytes(b"x" * 100)
    with pytest.raises(OSError, match="not a file of kept output"):
        sink.read(str(path))
