"""The log: lines for people and for machines, and what must never stand in one."""

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent_core import log
from agent_core.sections import LogSection

Configure = Callable[..., io.StringIO]


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Sets up the log with a stream that can be read; afterwards nothing of it is left."""

    def set_up(form: str = "text", level: str = "info", **more: Any) -> io.StringIO:
        stream = io.StringIO()
        section = LogSection.model_validate({"level": level, "format": form})
        log.configure(section, stream, **more)
        return stream

    yield set_up
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h).__module__ == "agent_core.log"]:
        root.removeHandler(handler)


def test_a_line_for_people(configure: Configure) -> None:
    stream = configure()
    log.get("server_client").info("registered", server="http://x", words="a b", none=None, n=1)
    line = stream.getvalue()
    said = 'info    server_client  registered  server=http://x words="a b" none=None n=1\n'
    assert re.fullmatch(r"\d\d:\d\d:\d\d " + re.escape(said), line)


def test_a_line_for_machines_is_one_json_object(configure: Configure) -> None:
    stream = configure("json")
    log.get("hooks").warning(
        "slow\nhook", seconds=1.5, path=Path("/x"), names={"a"}, why=ValueError("v")
    )
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
    assert told == {
        "level": "warning",
        "logger": "hooks",
        "event": "slow\nhook",
        "seconds": 1.5,
        "path": "/x",
        "names": "{'a'}",
        "why": "v",
    }


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_decides_what_is_shown(
    configure: Configure, level: str, shown: list[str]
) -> None:
    stream = configure(level=level)
    logger = log.get("x")
    for name in ("debug", "info", "warning", "error"):
        getattr(logger, name)("said")
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == shown


async def test_task_attempt_and_run_are_on_every_line_of_that_asyncio_task_alone(
    configure: Configure,
) -> None:
    stream = configure("json")
    both = asyncio.Barrier(2)

    async def work(task: str) -> None:
        with log.about(task=task, attempt="a1", run=2):
            await both.wait()
            log.get("runner").info("began")
        log.get("runner").info("left")

    await asyncio.gather(work("t1"), work("t2"))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    began = [(e["task"], e["attempt"], e["run"]) for e in lines if e["event"] == "began"]
    assert sorted(began) == [("t1", "a1", 2), ("t2", "a1", 2)]
    assert all("task" not in e for e in lines if e["event"] == "left")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_token_stands_in_no_line_by_name_or_by_value(configure: Configure, form: str) -> None:
    stream = configure(form, secrets=["hunter2-hunter2", "s"])
    logger = log.get("http")
    logger.info("asked", agent_token="abc", Authorization="Bearer abc", user_password="abc")
    logger.info("answer: bad hunter2-hunter2", headers={"x": "hunter2-hunter2"})
    try:
        raise ValueError("hunter2-hunter2")
    except ValueError:
        logger.exception("failed")
    text = stream.getvalue()
    assert "abc" not in text
    assert "hunter2" not in text
    assert "bad ***" in text
    assert "answer" in text  # a secret of one letter does not riddle the log


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_plain_and_holds_no_local_variable(configure: Configure, form: str) -> None:
    stream = configure(form)
    local = "value of a local"
    try:
        raise RuntimeError("it broke") from KeyError(len(local))
    except RuntimeError:
        log.get("x").exception("failed")
    text = stream.getvalue()
    assert "RuntimeError: it broke" in text
    assert "KeyError: 16" in text
    assert "Traceback (most recent call last)" in text
    assert "value of a" not in text.replace('local = "value of a local"', "")
    assert "╭" not in text


@pytest.mark.parametrize(
    "text", ["a\n12:00:00 error forged", "\x1b[2J", "\r", "a\u2028b", "\ud800", "\x00", "\x9b1m"]
)
def test_no_text_from_outside_forges_a_line_or_moves_the_cursor(
    configure: Configure, text: str
) -> None:
    stream = configure()
    log.get("x").info(text, value=text, key=text)
    (line,) = stream.getvalue().removesuffix("\n").split("\n")
    assert line.isprintable()


def test_a_long_value_is_cut_and_a_long_traceback_keeps_its_end(configure: Configure) -> None:
    stream = configure("json")
    log.get("x").info("e" * 10_000, value="v" * 10_000)
    try:
        raise ValueError("x" * 50_000 + "the end")
    except ValueError:
        log.get("x").exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert len(first["event"]) == len(first["value"]) == log.LONGEST_VALUE + 1
    assert len(second["exception"]) == log.LONGEST_TRACEBACK
    assert second["exception"].endswith("the end")


def test_a_stream_that_takes_no_more_stops_nothing() -> None:
    class Broken(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    try:
        log.configure(LogSection(), Broken())
        log.get("x").error("said to nobody")
        closed = io.StringIO()
        closed.close()
        log.configure(LogSection(), closed)
        log.get("x").error("said to nobody")
    finally:
        structlog.reset_defaults()


def test_a_stream_of_another_encoding_gets_what_it_can_hold(configure: Configure) -> None:
    raw = io.BytesIO()
    log.configure(LogSection(), io.TextIOWrapper(raw, encoding="ascii"))
    configure  # noqa: B018 - its end cleans up
    log.get("x").info("grün")
    assert rb"gr\xfcn" in raw.getvalue()


def test_libraries_are_heard_from_warning_on_and_in_the_same_form(configure: Configure) -> None:
    stream = configure("json")
    library = logging.getLogger("httpx._client")
    library.setLevel(logging.DEBUG)  # as some libraries do themselves
    library.info("GET https://x?token=abc")
    library.warning("slow %s", "answer")
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        library.critical("broke", exc_info=True)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [(e["logger"], e["level"], e["event"]) for e in lines]
    assert told == [
        ("httpx", "warning", "slow answer"),
        ("httpx", "error", "broke"),
    ]
    assert "ZeroDivisionError" in lines[1]["exception"]


def test_a_second_set_up_does_not_double_what_libraries_say(configure: Configure) -> None:
    configure()
    stream = configure()
    logging.getLogger("asyncio").warning("once")
    assert stream.getvalue().count("once") == 1


def test_without_a_stream_it_goes_to_standard_error() -> None:
    code = (
        "from agent_core import log; from agent_core.sections import LogSection\n"
        "early = log.get('early')\n"
        "log.configure(LogSection()); early.info('hello')\n"
        "import logging; logging.getLogger('library').error('bad %d', 'format')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "info    early  hello" in done.stderr
    assert "error   library  bad %d\n" in done.stderr
