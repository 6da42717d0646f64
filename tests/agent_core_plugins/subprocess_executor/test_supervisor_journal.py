"""The journal: whatever is left of the file, it is read, and nothing comes twice."""

import json
import os
import random
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_core_plugins.subprocess_executor.supervisor import journal

END = {
    "status": 0,
    "user": 0.1,
    "system": 0.2,
    "rss": 4096,
    "wall_s": 1.5,
    "at": 2.5,
    "out": [3, 0],
}
STARTED = {"pid": 10, "ticks": 20, "wall": 1.0, "since": 2.0}


def header() -> bytes:
    return journal.encode({"v": journal.VERSION, "journal": "j", "boot": "b", "made": 1.0})


def line(kind: str, start_id: str) -> bytes:
    facts = {"started": STARTED, "end": END, "never": {"errno": 2, "stage": "exec"}}
    facts["mark"] = {"mark": "timed out"}
    return journal.encode({"k": kind, "s": start_id, **facts.get(kind, {})})


def note(writer: journal.Journal, kind: str, start_id: str, facts: dict[str, object]) -> None:
    writer.note(kind, start_id, json.dumps(facts)[1:-1])


KINDS = ("intent", "started", "end", "never", "mark", "forget")
ids = st.sampled_from(["a", "b", "c"])
lines = st.builds(line, st.sampled_from(KINDS), ids)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def strange(kind: str, start_id: object, facts: dict[str, object]) -> bytes:
    return json.dumps({"k": kind, "s": start_id, **facts}).encode() + b"\n"


fields = st.dictionaries(
    st.sampled_from(
        ["pid", "ticks", "wall", "since", "errno", "stage", "status", "out", "at", "rss"]
    ),
    json_values,
)
garbage = st.binary(max_size=40) | st.builds(strange, st.sampled_from(KINDS), json_values, fields)


def check(book: journal.Book) -> None:
    """Every record has the form that its readers rely on."""
    for start_id, record in book.records.items():
        assert record.start_id == start_id
        if record.started:
            assert isinstance(record.started["pid"], int)
            assert isinstance(record.started["ticks"], int)
            float(record.started["wall"]), float(record.started["since"])
        if record.end:
            assert [int(length) for length in record.end["out"]] == record.end["out"]
            os.WIFSIGNALED(record.end["status"] & 0xFFFF)
        assert isinstance(record.mark, str)
        if record.never:
            os.strerror(record.never["errno"] & 0xFF)


@settings(max_examples=150, deadline=None)
@given(st.lists(lines | garbage, max_size=30), st.data())
def test_any_part_of_any_journal_is_read_without_an_error(parts: list[bytes], data: object) -> None:
    whole = header() + b"".join(parts)
    cut = data.draw(st.integers(0, len(whole)))  # type: ignore[attr-defined]
    book = journal.parse(whole[:cut] + b"\0" * 100)
    if book is not None:
        check(book)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_journal_is_none(data: bytes) -> None:
    assert journal.parse(data) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(lines, max_size=20), st.randoms(use_true_random=False))
def test_duplicate_and_reordered_lines_say_the_same(
    parts: list[bytes], chance: random.Random
) -> None:
    def told(book: journal.Book | None) -> dict[str, object]:
        assert book is not None
        return {
            one.start_id: (one.intended, one.started, one.never, one.end, one.mark, one.forgotten)
            for one in book.records.values()
        }

    mixed = parts * 2
    chance.shuffle(mixed)
    assert told(journal.parse(header() + b"".join(parts))) == told(
        journal.parse(header() + b"".join(mixed))
    )


def made(path: Path) -> journal.Journal:
    journal.create(str(path), "j", "b", 1.0)
    return journal.Journal(str(path))


def records(path: Path) -> dict[str, journal.Record]:
    book = journal.read(str(path))
    assert book is not None
    return book.records


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    writer = made(path)
    writer.intent("a")
    note(writer, "started", "a", STARTED)
    note(writer, "end", "a", END)
    writer.intent("b")
    found = records(path)
    assert found["a"].started is not None
    assert found["a"].started["pid"] == 10
    assert found["a"].end is not None
    assert found["a"].end["out"] == [3, 0]
    assert found["b"].intended
    assert found["b"].started is None


def test_a_torn_last_line_is_ignored_and_followed_by_whole_ones(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    made(path).intent("a")
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole + b'{"k":"end","s":"a","stat')
    journal.Journal(str(path)).intent("b")
    found = records(path)
    assert set(found) == {"a", "b"}
    assert found["a"].end is None


def test_a_journal_of_many_forgotten_runs_stays_small_and_keeps_the_living(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    writer = made(path)
    writer.intent("lives")
    note(writer, "started", "lives", STARTED)
    for number in range(3000):
        start_id = f"run-{number}"
        writer.intent(start_id)
        note(writer, "started", start_id, STARTED)
        note(writer, "end", start_id, END)
        writer.forget([start_id])
    assert path.stat().st_size < 3 * journal.STEP
    assert records(path)["lives"].started is not None


def test_a_full_file_system_refuses_new_intents_and_still_takes_the_ends_of_old_ones(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    writer = made(path)
    for number in range(50):
        writer.intent(f"run-{number}")
    end_of_disk = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (end_of_disk, before[1]))  # no file grows beyond it
    try:
        begun = intents_until_full(writer, 50)
        for number in range(begun):
            note(writer, "started", f"run-{number}", STARTED)
            note(writer, "end", f"run-{number}", END)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 50 <= begun < 1000
    assert path.stat().st_size == end_of_disk
    assert sum(record.end is not None for record in records(path).values()) == begun


def intents_until_full(writer: journal.Journal, number: int) -> int:
    while number < 1000:
        try:
            writer.intent(f"run-{number}")
        except OSError:
            break
        number += 1
    return number


def test_a_journal_is_made_only_once(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    made(path)
    with pytest.raises(FileExistsError):
        journal.create(str(path), "other", "b", 2.0)
