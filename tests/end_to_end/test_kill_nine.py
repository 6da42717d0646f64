"""Scenario 19: the agent is killed again and again, and every task has its true outcome."""

import pytest

from tests.end_to_end.records import Mark
from tests.end_to_end.site import Site
from tests.load.chaos import Chaos
from tests.load.checker import KINDS, Expected, check

SEED = 19


@pytest.mark.timeout(300)
def test_scenario_19_after_many_kills_each_of_150_tasks_has_its_true_outcome_and_ran_once(
    site: Site,
) -> None:
    chaos = Chaos(site, SEED, server_too=False)

    wrong = chaos.run(150)

    assert wrong == []
    assert len(chaos.expected) == 150
    assert sum(chaos.kills.values()) >= 6, chaos.kills


def _runs(*numbers: int, attempt: str = "a") -> list[dict[str, object]]:
    return [{"run_no": number, "attempt_id": attempt} for number in numbers]


def _case(marks: list[Mark], **changed: object) -> list[str]:
    kind = KINDS[3]  # fails once, then succeeds
    expected = Expected(task_id="t", number=5, kind=kind)
    task = {
        "status": "completed",
        "reason": "exited",
        "exit_code": 0,
        "signal": None,
        "stdout": "out of 5\n",
        "runs": _runs(1, 2),
        **changed,
    }
    return check([expected], {"t": task}, marks)


def test_the_checker_sees_what_chaos_may_bring() -> None:
    good = [
        Mark("begin", "t", 1, ""),
        Mark("end", "t", 1, "1"),
        Mark("begin", "t", 2, ""),
        Mark("end", "t", 2, "0"),
    ]
    assert _case(good) == []
    assert _case([*good[:1], *good])  # a run began twice
    assert _case(good[2:])  # a run is missing
    assert _case([good[0], good[2], good[1], good[3]])  # two at once
    assert _case(good[:3])  # its end is reported, and never came
    assert _case([*good, Mark("begin", "stranger", 1, "")])
    assert _case(good, status="failed")
    assert _case(good, exit_code=1)
    assert _case(good, stdout="")
    assert _case(good, runs=_runs(2))  # the first is forgotten
    assert _case(good, runs=_runs(1, 2, 2))
    assert _case(good, runs=[*_runs(1), *_runs(2, attempt="b")])
