"""kill -9 of the agent, of its supervisor, and of both, at any instant: every run is found again,
ran once, and is told as it really ended."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.agent_core_plugins.subprocess_executor import driver
from tests.agent_core_plugins.subprocess_executor.conftest import end_process, supervisors

ROUNDS = int(os.environ.get("KILL_ROUNDS", "10"))


def start(base: Path, runtime: Path, how: str) -> "subprocess.Popen[str]":
    command = [sys.executable, driver.__file__, str(base), str(runtime), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process


def finish(base: Path, runtime: Path) -> dict[str, dict[str, Any]]:
    """Let a last agent bring everything to its end."""
    process = start(base, runtime, "finish")
    process.communicate(timeout=60)
    assert process.returncode == 0
    return driver.entries(base)


def marks(base: Path) -> Counter[str]:
    path = base / "marks"
    return Counter(path.read_text().splitlines() if path.exists() else ())


def check_ran_once(base: Path, told: dict[str, dict[str, Any]]) -> None:
    seen = marks(base)
    assert all(count == 1 for count in seen.values()), "something ran twice"
    for start_id, entry in told.items():
        end = entry["end"]
        if end["what"] == "never":
            assert not seen[f"began {start_id}"], f"called unbegun, and ran: {entry}"
        elif end["what"] == "ended" and end["reason"] == "exited":
            assert seen[f"ended {start_id}"], f"called ended, and did not: {entry}"
            assert (end["code"], end["out"]) == (entry["code"], f"out {entry['code']}\n"), entry


def begun(ledger: Path) -> int:
    return ledger.read_bytes().count(b'"begun"') if ledger.exists() else 0


def kill_at_random(
    base: Path, runtime: Path, chance: random.Random, *, supervisor: bool, agent: bool
) -> None:
    ledger = base / "ledger"
    known = begun(ledger)
    process = start(base, runtime, "work")
    assert process.stdout is not None
    if chance.random() < 0.7:  # else somewhere in its start
        process.stdout.readline()
        while begun(ledger) == known:  # until a task of its runs, however slow this machine is
            time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.25))
    if supervisor:
        for pid in supervisors(runtime):
            end_process(pid)
    if not agent:
        time.sleep(chance.uniform(0, 0.25))
    process.kill()
    process.communicate()


@pytest.mark.timeout(120 + 10 * ROUNDS)
def test_an_agent_killed_at_any_instant_finds_every_run_again(
    tmp_path: Path, runtime: Path
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        kill_at_random(tmp_path, runtime, chance, supervisor=False, agent=True)
    told = finish(tmp_path, runtime)
    print(f"seed {seed}, {len(told)} starts, {Counter(e['end']['what'] for e in told.values())}")
    check_ran_once(tmp_path, told)
    ends = {entry["end"]["what"] for entry in told.values()}
    assert "lost" not in ends
    assert all(entry["end"].get("reason", "exited") == "exited" for entry in told.values())
    assert len(supervisors(runtime)) == 1
    assert not list((tmp_path / "state" / "output").iterdir())


@pytest.mark.timeout(120 + 10 * ROUNDS)
@pytest.mark.parametrize("agent", [False, True], ids=["alone", "with the agent"])
def test_a_killed_supervisor_never_makes_a_run_begin_twice(
    tmp_path: Path, runtime: Path, agent: bool
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        kill_at_random(tmp_path, runtime, chance, supervisor=True, agent=agent)
    told = finish(tmp_path, runtime)
    print(f"seed {seed}, {len(told)} starts, {Counter(e['end']['what'] for e in told.values())}")
    check_ran_once(tmp_path, told)
    assert Counter(entry["end"]["what"] for entry in told.values())["ended"] > ROUNDS // 4
