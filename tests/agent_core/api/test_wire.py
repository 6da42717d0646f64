"""Codes, envelope, times and the text rule, as both ends of the wire read and write them."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_core.api.wire import (
    MEANINGS,
    Answer,
    Code,
    envelope,
    epoch,
    meaning,
    output_fields,
    plain_text,
    rfc3339,
    same_key,
)


@pytest.mark.parametrize(
    ("code", "http", "answer"),
    [
        (0, 200, "taken"),
        (30001, 409, "stale"),
        (30002, 409, "stale"),
        (30003, 410, "retry"),
        (30004, 404, "stale"),
        (30005, 400, "refused"),
        (30012, 401, "retry"),
        (30013, 503, "retry"),
        (30014, 409, "refused"),
        (30015, 413, "refused"),
        (30016, 404, "retry"),
        (30099, 500, "retry"),
    ],
)
def test_each_code_that_a_server_answers_has_its_status_and_its_receipt(code, http, answer):
    assert meaning(code) == (http, answer)


@pytest.mark.parametrize("code", [30006, 30007, 1, -1, 409, 500, 10**9])
def test_a_code_that_no_answer_should_bear_is_tried_again(code):
    assert meaning(code) == MEANINGS[Code.INTERNAL] == (500, Answer.RETRY)


def test_codes_are_told_apart():
    assert len({int(code) for code in Code}) == len(Code) == 18
    assert all(code == 0 or 30001 <= code <= 30099 for code in Code)


def test_an_envelope_is_json_with_an_integer_code():
    assert json.loads(json.dumps(envelope({"a": 1}))) == {
        "code": 0,
        "message": "success",
        "data": {"a": 1},
    }
    refused = json.dumps(envelope(code=Code.INVALID, message="why"))
    assert json.loads(refused) == {"code": 30005, "message": "why", "data": None}
    assert envelope(code=Code.INTERNAL)["message"] == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2026-01-31T12:00:00Z", 1769860800.0),
        ("2026-01-31T20:00:00+08:00", 1769860800.0),
        ("2026-01-31T20:00:00.5+08:00", 1769860800.5),
        ("2026-01-31T12:00:00.123456789Z", 1769860800.123456),
        ("0001-01-01T00:00:00Z", None),
        ("", None),
        (None, None),
    ],
)
def test_a_time_is_read_in_every_form_that_servers_send(text, seconds):
    assert epoch(text) == seconds


@pytest.mark.parametrize(
    "text", ["yesterday", "2026-01-31T12:00:00", "2026-01-31", 1769860800, True, [], {}, "Z"]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError):
        epoch(text)


def test_a_time_is_written_in_utc_with_milliseconds():
    assert rfc3339(1769860800.5) == "2026-01-31T12:00:00.500Z"
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(None) is None


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_survives_the_way_there_and_back(milliseconds):
    seconds = milliseconds / 1000
    text = rfc3339(seconds)
    assert text is not None
    assert epoch(text) == pytest.approx(seconds, abs=0.001)


def test_what_a_text_cannot_hold_is_replaced():
    assert plain_text(b"a\xffb\x00c\xc3\xbc") == "a\ufffdb\ufffdcü"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain\n",
        b"1\n2\n3\n4\n" + b"x" * 16,
        "ü€名".encode(),
        b"x" * 149 + b"\x01" * 10,
        b"\x1b[1mbold\x1b[0m: the colours of a terminal are fine",
    ],
)
def test_text_travels_as_text(data):
    assert output_fields("stdout", data) == {"stdout": data.decode()}


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"a\x00b",
        b"\x01" * 16,
        b"\n" * 16,
        b"x" * 139 + b"\x01" * 10,
        b"x" * 27 + b"\x7f" * 2,
    ],
)
def test_what_is_no_text_or_would_swell_travels_as_base64(data):
    (item,) = output_fields("stderr", data).items()
    assert item == ("stderr_base64", base64.b64encode(data).decode())


@given(st.binary(max_size=300) | st.text(alphabet='ab\n\t\x1b\x7f"\\', max_size=60).map(str.encode))
def test_output_comes_back_byte_for_byte_and_never_grows_by_much(data):
    ((name, text),) = output_fields("stdout", data).items()
    back = base64.b64decode(text) if name.endswith("_base64") else text.encode()
    assert back == data
    if name == "stdout":
        assert "\0" not in text
        ascii_only = "".join(each for each in text if ord(each) < 0x80)
        grown = len(json.dumps(ascii_only)) - 2 - len(ascii_only)
        assert grown <= len(data) / 3


@given(st.text(), st.text())
def test_keys_are_the_same_only_if_they_are_equal(one, other):
    if any(0xD800 <= ord(each) < 0xDC80 or 0xDCFF < ord(each) < 0xE000 for each in one + other):
        return
    assert (same_key(one) == same_key(other)) == (one == other)


def test_a_key_of_any_bytes_can_be_compared():
    assert same_key("t\xf6ken\udcff") == "töken".encode() + b"\xff"
