"""What a task prints becomes harmless on a terminal, however it is cut into pieces."""

import base64
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_core.cli.viewers import Harmless, coded

ESCAPES = [b"\x1b]0;owned\x07", b"\x1b[2J", b"\x9b31m", "\x9b31m\u202e".encode(), b"\x00\x08\x7f"]
OUTPUT = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from([*ESCAPES, "é€😀".encode(), b"a\r\n\tb\r"]), max_size=20).map(
        b"".join
    ),
)


def shown(*pieces: bytes) -> str:
    harmless = Harmless()
    return "".join([*map(harmless.text, pieces), harmless.end()])


@given(OUTPUT)
@example("\x1b\x9b\u202e\u2028".encode())
def test_nothing_that_acts_on_a_terminal_reaches_it(data: bytes) -> None:
    acting = [
        char
        for char in shown(data)
        if (ord(char) < 0x20 and char not in "\n\t\r") or 0x7F <= ord(char) <= 0x9F
    ]
    assert acting == []


@given(OUTPUT)
def test_what_reaches_a_utf_8_terminal_is_utf_8(data: bytes) -> None:
    assert shown(data).encode().decode() == shown(data)


@given(OUTPUT, st.lists(st.integers(0, 200), max_size=10))
def test_the_pieces_do_not_matter(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    assert b"".join(pieces) == data
    assert shown(*pieces) == shown(data)


@given(OUTPUT)
def test_what_is_harmless_stays_as_it_is(data: bytes) -> None:
    once = shown(data)
    assert shown(once.encode()) == once


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=50))
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    line = f"{text}\r\n\t{text}\r"
    assert shown(line.encode()) == line


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),
        (b"caf\xe9\n", "caf\\xe9\n"),
        (b" 42%|####      |\r", " 42%|####      |\r"),
        ("€".encode()[:2], "\\xe2\\x82"),
        (b"a\x0b\x0cb", "a\\x0b\\x0cb"),
    ],
)
def test_it_is_shown_instead(data: bytes, text: str) -> None:
    assert shown(data) == text


@given(st.binary(max_size=100))
def test_json_carries_any_bytes(data: bytes) -> None:
    told = coded(data)
    text = told["data"]
    back = text.encode() if told["encoding"] == "utf-8" else base64.b64decode(text)
    assert back == data
