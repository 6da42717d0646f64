"""Reports: which calls an event becomes, and what an answer makes of it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_core import Answer, Event, EventKind, Key, Outcome, Reason, Unreachable, Usage
from agent_core.testing.http_server import NOT_FOUND, Reply, Request, answer
from agent_core_plugins.server_client.forms import complete_fields, cut, plain_exit_code

TASKS = "/api/v1/agent/tasks"
START, RENEW = f"{TASKS}/*/start", f"{TASKS}/*/lease/renew"
COMPLETE, RELEASE = f"{TASKS}/*/complete", f"{TASKS}/*/release"
REGISTER = "/api/v1/agent/register"
SUCCESS = Outcome(reason=Reason.EXITED, exit_code=0)


def event(
    kind: EventKind, *, task: str = "t1", seq: int = 1, run_no: int = 1, **fields: Any
) -> Event:
    return Event(
        kind=kind,
        key=Key(task, f"{task}-1"),
        source="server_client",
        run_no=run_no,
        at=0.0,
        seq=seq,
        **fields,
    )


def complete(outcome: Outcome = SUCCESS, **fields: Any) -> Event:
    return event(EventKind.COMPLETE, outcome=outcome, **fields)


async def test_a_start_is_told_once_an_attempt(opened: Any) -> None:
    async with opened() as site:
        site.server.on(START, answer({"task_id": "t1", "status": "running"}))
        receipts = await site.client.report(
            [event(EventKind.START, seq=1), event(EventKind.START, seq=2, run_no=2)]
        )
        assert [(each.seq, each.answer) for each in receipts] == [
            (1, Answer.TAKEN),
            (2, Answer.TAKEN),
        ]
        (request,) = site.server.asked(START)
        assert request.path == f"{TASKS}/t1/start"
        assert request.json() == {"agent_id": "agent-1", "attempt_id": "t1-1"}


async def test_a_run_that_another_follows_stays_the_agents_own_record(opened: Any) -> None:
    async with opened() as site:
        (receipt,) = await site.client.report([event(EventKind.RUN, outcome=SUCCESS)])
        assert receipt.answer is Answer.TAKEN
        assert site.server.asked(f"{TASKS}/*/*") == []


async def test_an_id_is_one_segment_of_the_path_whatever_it_holds(opened: Any) -> None:
    async with opened() as site:
        site.server.on(START, answer())
        await site.client.report([event(EventKind.START, task="a/../b?c#d e%")])
        (request,) = site.server.asked(START)
        assert request.path == f"{TASKS}/a%2F..%2Fb%3Fc%23d%20e%25/start"


@pytest.mark.parametrize(
    ("reply", "meant"),
    [
        (answer(), Answer.TAKEN),
        (answer(code=30001, message="newer", status=409), Answer.STALE),
        (answer(code=30002, message="final", status=409), Answer.STALE),
        (answer(code=30004, message="no task", status=404), Answer.STALE),
        (answer(code=30005, message="bad", status=400), Answer.REFUSED),
        (answer(code=30012, message="token", status=401), Answer.RETRY),
        (answer(code=30013, message="full", status=503), Answer.RETRY),
        (answer(code=30099, message="oops", status=500), Answer.RETRY),
        (answer(code=401, message="unauthorized"), Answer.RETRY),
        (answer(code=500, message="数据库错误"), Answer.RETRY),
        (answer(code=12345, message="new word"), Answer.RETRY),
    ],
)
async def test_an_answers_code_decides_what_becomes_of_an_event(
    opened: Any, reply: Reply, meant: Answer
) -> None:
    async with opened() as site:
        site.server.on(COMPLETE, reply)
        (receipt,) = await site.client.report([complete(seq=7)])
        assert (receipt.seq, receipt.answer) == (7, meant)
        assert receipt.message == json.loads(reply.body)["message"]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b""),
        Reply(status=502, body=b"<html>"),
        Reply(status=500, body=b'{"code":0}'),
        Reply(body=b"[]"),
        Reply(body=b"null"),
        NOT_FOUND,
        answer(code=30016, message="no route", status=404),
    ],
)
async def test_what_is_no_answer_leaves_the_result_where_it_is(opened: Any, reply: Reply) -> None:
    async with opened() as site:
        site.server.on(COMPLETE, reply)
        with pytest.raises(Unreachable):
            await site.client.report([complete()])


async def test_an_outage_of_one_call_does_not_hide_the_others_receipts(opened: Any) -> None:
    def answering(request: Request) -> Reply:
        return Reply(body=b"") if "/t2/" in request.path else answer()

    async with opened() as site:
        site.server.on(COMPLETE, answering)
        receipts = await site.client.report([complete(task=f"t{n}", seq=n) for n in (1, 2, 3)])
        assert [(each.seq, each.answer) for each in receipts] == [
            (1, Answer.TAKEN),
            (2, Answer.RETRY),
            (3, Answer.TAKEN),
        ]


async def test_a_start_after_the_leases_end_is_renewed_once_and_told_again(opened: Any) -> None:
    over = answer(code=30003, message="lease over", status=410)
    async with opened() as site:
        site.server.on(START, over, answer())
        site.server.on(RENEW, answer({"lease_sec": 60}))
        (receipt,) = await site.client.report([event(EventKind.START)])
        assert receipt.answer is Answer.TAKEN
        assert [key.task_id for key, _ in site.agent.renewals] == ["t1"]

        site.server.on(START, over)
        (receipt,) = await site.client.report([event(EventKind.START)])
        assert receipt.answer is Answer.RETRY
        assert len(site.server.asked(START)) == 4


async def test_a_start_whose_attempt_turns_out_lost_at_its_renewal_is_stale(opened: Any) -> None:
    async with opened() as site:
        site.server.on(START, answer(code=30003, message="lease over", status=410))
        site.server.on(RENEW, answer(code=30001, message="newer attempt", status=409))
        (receipt,) = await site.client.report([event(EventKind.START)])
        assert (receipt.answer, receipt.code) == (Answer.STALE, 30001)


async def test_a_tasks_end_is_never_told_before_its_start_was_taken(opened: Any) -> None:
    async with opened() as site:
        site.server.on(START, answer(code=30013, message="full", status=503))
        site.server.on(COMPLETE, answer())
        receipts = await site.client.report([event(EventKind.START, seq=1), complete(seq=2)])
        assert [each.answer for each in receipts] == [Answer.RETRY, Answer.RETRY]
        assert site.server.asked(COMPLETE) == []

        site.server.on(START, answer())
        receipts = await site.client.report([event(EventKind.START, seq=1), complete(seq=2)])
        assert [each.answer for each in receipts] == [Answer.TAKEN, Answer.TAKEN]
        paths = [request.path for request in site.server.asked(f"{TASKS}/t1/*")]
        assert paths[-2:] == [f"{TASKS}/t1/start", f"{TASKS}/t1/complete"]


async def test_reports_run_side_by_side_but_at_most_eight_at_once(opened: Any) -> None:
    gate = asyncio.Event()
    async with opened() as site:
        site.server.on(COMPLETE, Reply(body=answer().body, gate=gate))
        events = [complete(task=f"t{n}", seq=n) for n in range(1, 21)]
        reporting = asyncio.create_task(site.client.report(events))
        await site.server.wait_for(COMPLETE, 8)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(site.server.asked(COMPLETE)) == 8
        gate.set()
        receipts = await reporting
        assert [each.seq for each in receipts] == list(range(1, 21))
        assert len(site.server.asked(COMPLETE)) == 20


async def test_what_is_given_back_is_released_with_its_reason(opened: Any) -> None:
    given = Outcome(reason=Reason.RELEASED, error="given back: the agent stops")
    async with opened() as site:
        site.server.on(RELEASE, answer())
        (receipt,) = await site.client.report([event(EventKind.RELEASE, outcome=given)])
        assert receipt.answer is Answer.TAKEN
        assert site.server.asked(RELEASE)[0].json() == {
            "agent_id": "agent-1",
            "attempt_id": "t1-1",
            "reason": "given back: the agent stops",
        }


async def test_a_server_that_takes_nothing_back_lets_the_lease_run_out(opened: Any) -> None:
    async with opened() as site:
        (receipt,) = await site.client.report([event(EventKind.RELEASE)])
        assert receipt.answer is Answer.TAKEN
        assert site.server.asked(COMPLETE) == []
        assert any("lease will run out" in words for words in site.said("info"))


async def registered(site: Any, reply: Reply) -> None:
    site.server.on(REGISTER, reply)
    await site.client._contact.registered(site.agent)


FAILED = Outcome(
    reason=Reason.SIGNAL,
    exit_code=137,
    signal="SIGKILL",
    error="ended by SIGKILL",
    stdout=b"out\xff\0put",
    stderr=b"err",
    dropped_stdout=17,
    dropped_stderr=None,
    usage=Usage(wall_s=1.5, user_s=1.0, system_s=0.25, max_rss_bytes=4096),
)


async def test_a_server_with_capabilities_is_told_everything(opened: Any) -> None:
    async with opened() as site:
        site.server.on(COMPLETE, answer())
        await registered(site, answer({"capabilities": []}))
        await site.client.report([complete(FAILED)])
        assert site.server.asked(COMPLETE)[0].json() == {
            "agent_id": "agent-1",
            "attempt_id": "t1-1",
            "exit_code": 137,
            "stdout": "out\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}put",
            "stderr": "err",
            "error": "ended by SIGKILL",
            "status": "failed",
            "reason": "signal",
            "error_code": 0,
            "signal": "SIGKILL",
            "truncated": {"stdout": 17, "stderr": None},
            "usage": {"wall_s": 1.5, "user_s": 1.0, "system_s": 0.25, "max_rss_bytes": 4096},
        }


async def test_a_server_without_capabilities_is_told_what_it_knows(
    opened: Any, server: Any
) -> None:
    server.on(REGISTER, NOT_FOUND)
    async with opened() as site:
        await site.client._contact.registered(site.agent)
        site.server.on(COMPLETE, answer())
        await site.client.report([complete(FAILED)])
        assert site.server.asked(COMPLETE)[0].json() == {
            "agent_id": "agent-1",
            "attempt_id": "t1-1",
            "exit_code": 137,
            "stdout": "out\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}put",
            "stderr": "err",
            "error": "ended by SIGKILL",
        }


@pytest.mark.parametrize(
    ("outcome", "plain", "status", "extended"),
    [
        (SUCCESS, 0, "completed", 0),
        (Outcome(reason=Reason.EXITED, exit_code=3), 3, "failed", 3),
        (Outcome(reason=Reason.SIGNAL, exit_code=143, signal="SIGTERM"), 143, "failed", 143),
        (Outcome(reason=Reason.TIMEOUT, exit_code=124), 124, "failed", 124),
        (Outcome(reason=Reason.TIMEOUT, exit_code=0), 124, "failed", 0),
        (Outcome(reason=Reason.TIMEOUT), 124, "failed", None),
        (Outcome(reason=Reason.OOM, exit_code=137), 137, "failed", 137),
        (Outcome(reason=Reason.NEVER_RAN), -1, "failed", None),
        (Outcome(reason=Reason.REFUSED), -1, "failed", None),
        (Outcome(reason=Reason.LOST), -1, "failed", None),
        (Outcome(reason=Reason.CANCELLED, exit_code=143), -1, "cancelled", 143),
        (Outcome(reason=Reason.CANCELLED), -1, "cancelled", None),
        (Outcome(reason=Reason.DEPENDENCY), -1, "failed", None),
        (Outcome(reason=Reason.EXITED), -1, "failed", None),
    ],
)
def test_only_success_is_exit_code_0_to_a_server_that_sees_nothing_else(
    outcome: Outcome, plain: int, status: str, extended: int | None
) -> None:
    assert plain_exit_code(outcome) == plain
    fields = complete_fields(complete(outcome), extended=True, limit=10_000)
    assert (fields["status"], fields["exit_code"]) == (status, extended)
    fields = complete_fields(complete(outcome), extended=False, limit=10_000)
    assert fields["exit_code"] == plain
    assert "status" not in fields


def test_an_end_without_an_outcome_is_lost_and_never_a_success() -> None:
    fields = complete_fields(event(EventKind.COMPLETE), extended=True, limit=10_000)
    assert (fields["status"], fields["reason"], fields["exit_code"]) == ("failed", "lost", None)


def test_usage_that_is_no_number_holds_up_no_result() -> None:
    outcome = Outcome(
        reason=Reason.EXITED, exit_code=0, usage=Usage(wall_s=float("nan"), user_s=1.0)
    )
    usage = complete_fields(complete(outcome), extended=True, limit=10_000)["usage"]
    assert usage == {"wall_s": None, "user_s": 1.0, "system_s": None, "max_rss_bytes": None}


def test_words_that_are_no_text_become_text() -> None:
    outcome = Outcome(reason=Reason.NEVER_RAN, error="no such file: \udcff\0\ud800")
    text = complete_fields(complete(outcome), extended=True, limit=10_000)["error"]
    text.encode()
    assert "\0" not in text
    assert text.startswith("no such file: \N{REPLACEMENT CHARACTER}")


FILLS: list[tuple[str, Callable[[int], bytes]]] = [
    ("plain", lambda size: b"x" * size),
    ("swells sixfold", lambda size: b"\x01" * size),
    ("is replaced by three bytes", lambda size: b"\xff" * size),
    ("two-byte letters", lambda size: "é".encode() * (size // 2)),
]


@pytest.mark.parametrize("fill", [fill for _, fill in FILLS], ids=[name for name, _ in FILLS])
def test_output_is_cut_until_the_body_fits_and_what_is_gone_is_counted(
    fill: Callable[[int], bytes],
) -> None:
    limit = 100_000
    outcome = Outcome(
        reason=Reason.EXITED,
        exit_code=0,
        stdout=b"<head>" + fill(120_000) + b"<tail>",
        stderr=b"short",
        dropped_stdout=1000,
    )
    fields = complete_fields(complete(outcome), extended=True, limit=limit)
    assert len(json.dumps(fields, ensure_ascii=False).encode()) <= limit
    assert fields["stdout"].startswith("<head>")
    assert fields["stdout"].endswith("<tail>")
    assert fields["stderr"] == "short"
    dropped = fields["truncated"]["stdout"]
    assert dropped > 1000
    assert f"\n...[truncated, {dropped} bytes dropped]\n" in fields["stdout"]
    assert fields["truncated"]["stderr"] == 0


def test_two_long_outputs_share_the_room() -> None:
    outcome = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"o" * 90_000, stderr=b"e" * 90_000)
    fields = complete_fields(complete(outcome), extended=True, limit=100_000)
    assert len(json.dumps(fields).encode()) <= 100_000
    assert min(len(fields["stdout"]), len(fields["stderr"])) > 30_000


@given(st.binary(max_size=300), st.integers(0, 400), st.none() | st.integers(0, 50))
@example(b"\n...[truncated, \x00]\n", 0, 1)
def test_a_cut_keeps_head_and_tail_and_loses_no_count(
    output: bytes, cap: int, before: int | None
) -> None:
    kept, dropped = cut(output, before, cap)
    if len(output) <= cap:
        assert (kept, dropped) == (output, before)
        return
    assert kept.startswith(output[: cap // 2])
    assert kept.endswith(output[len(output) - (cap - cap // 2) :])
    if before is None:
        assert dropped is None
        assert b"an unknown number of bytes dropped" in kept
    else:
        assert dropped == before + len(output) - cap


def test_the_words_of_an_earlier_cut_are_not_counted_as_output() -> None:
    marker = b"\n...[truncated, 500 bytes dropped]\n"
    kept, dropped = cut(b"a" * 100 + marker + b"b" * 100, 500, 50)
    assert dropped == 500 + 150
    assert kept == b"a" * 25 + b"\n...[truncated, 650 bytes dropped]\n" + b"b" * 25


async def test_a_body_that_is_too_large_for_the_server_is_cut_further(opened: Any) -> None:
    def choosy(request: Request) -> Reply:
        if len(request.body) > 600_000:
            return answer(code=30015, message="too large", status=413)
        return answer()

    outcome = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"x" * 3_000_000)
    async with opened() as site:
        site.server.on(COMPLETE, choosy)
        (receipt,) = await site.client.report([complete(outcome)])
        assert receipt.answer is Answer.TAKEN
        assert len(site.server.asked(COMPLETE)[-1].json()["stdout"]) > 100_000


async def test_a_server_that_takes_no_size_at_all_refuses_for_good(opened: Any) -> None:
    outcome = Outcome(reason=Reason.EXITED, exit_code=0, stdout=b"x" * 100_000)
    async with opened() as site:
        site.server.on(COMPLETE, answer(code=30015, message="too large", status=413))
        (receipt,) = await site.client.report([complete(outcome)])
        assert receipt.answer is Answer.REFUSED
        assert len(site.server.asked(COMPLETE)) < 8
