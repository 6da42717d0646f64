"""How PostgreSQL finds what each call needs, with 100,000 tasks waiting: by an index.

Counted in pages that it looks at, which no other work on the machine changes.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Select
from sqlalchemy.dialects.postgresql import psycopg as dialect

from agent_control_plane import batches, ledger, tasks
from agent_control_plane.db import Database
from tests.agent_control_plane.test_statements import CASES, VALUES
from tests.postgres import Cluster

pytestmark = pytest.mark.engines
WAITING = 100_000
PAGES = 200  # that one statement may look at
_FILL = """\
INSERT INTO tasks (id, created_at, name, type, command, args, exec, workdir, env, timeout, priority,
    max_retries, retry_delay, machine_id, group_id, on_lost_contact, status, attempt_id,
    assigned_agent_id, assigned_machine_id, retry_count, lost_attempts, cancel_reason,
    progress_message, ready_for, wake_at, error_code, error, needs)
SELECT 't' || n, n, '', 'shell', 'true', '[]', 0, '', '{{}}', 60, 5, 0, 0, '', '', 'keep',
    '{status}', CASE WHEN {held} THEN 'x' || n END, '', '', 0, 0, '', '',
    CASE WHEN {waits} THEN CASE WHEN n % 10 = 0 THEN 'm' ELSE '' END END,
    CASE WHEN {held} THEN n END, 0, '', CASE WHEN n % 3 = 0 THEN 'gpu' || n % 10 ELSE '' END
FROM generate_series({first}, {last}) AS n;
"""
_ATTEMPTS = """\
INSERT INTO attempts (id, task_id, agent_id, machine_id, request_id, older, granted_at,
    lease_expires_at, regrant_at, started_at, ended_at, error_code, error)
SELECT 'x' || n, 't' || n, 'a' || n % 100, 'm', 'r', 0, n, n, n, n,
    CASE WHEN n % 2 = 0 THEN n END, 0, ''
FROM generate_series({first}, {last}) AS n;
"""


@pytest.fixture(scope="module")
def full(postgres: Cluster) -> Iterator[psycopg.Connection[Any]]:
    """100,000 wait, 5,000 run and 20,000 have ended."""
    with postgres.schema() as name:
        asyncio.run(Database.open(postgres.url(name)).close())
        ended, held = WAITING + 25_000, WAITING + 5_000
        for first, last, status in (
            (1, WAITING, "pending"),
            (WAITING + 1, held, "running"),
            (held + 1, ended, "completed"),
        ):
            kind = {"waits": status == "pending", "held": status == "running"}
            postgres.query(_FILL.format(first=first, last=last, status=status, **kind), schema=name)
        postgres.query(_ATTEMPTS.format(first=WAITING + 1, last=ended), schema=name)
        with psycopg.connect(postgres.url(name), autocommit=True) as connection:
            yield connection


# SQLite's way to what is due; and a count of all that are open, made once in a thousand submits.
ELSEWHERE = (ledger._DUE, tasks._COUNT_OPEN)
STATEMENTS = [
    *(statement for statement, _ in CASES if statement not in ELSEWHERE),
    ledger._LOCK,
    ledger._LOCK_DUE,
    ledger._THESE_DUE,
    batches._LOCK,
]


def plan(connection: psycopg.Connection[Any], statement: Select[Any]) -> dict[str, Any]:
    """What the server did for the statement once it knows it, as it does from the sixth time on."""
    compiled = statement.compile(dialect=dialect.dialect())
    expanded = compiled.construct_expanded_state({**VALUES, "seqs": [1]})
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        names.append(found[1])
        return f"${len(names)}"

    text = re.sub(r"%\((\w+)\)s", number, expanded.statement)
    connection.execute(f"PREPARE asked AS {text}")
    try:
        literals = [psycopg.sql.Literal(expanded.parameters[name]) for name in names]
        values = ", ".join(literal.as_string(None) for literal in literals)
        done = connection.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked({values})"
        ).fetchone()
    finally:
        connection.execute("DEALLOCATE asked")
    assert done is not None
    found: dict[str, Any] = done[0][0]["Plan"]
    return found


def steps(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield found
    for inner in found.get("Plans", ()):
        yield from steps(inner)


@pytest.mark.parametrize("known", ["as it is", "analyzed"])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_no_statement_of_every_call_walks_through_a_table(
    full: psycopg.Connection[Any], known: str, mode: str
) -> None:
    if known == "analyzed":
        full.execute("ANALYZE tasks, attempts")
    full.execute(f"SET plan_cache_mode = {mode}")
    wrong = {}
    for statement in STATEMENTS:
        found = plan(full, statement)
        pages = found["Shared Hit Blocks"] + found["Shared Read Blocks"]
        walked = [
            step["Node Type"]
            for step in steps(found)
            if step["Node Type"] == "Seq Scan" and step["Relation Name"] in {"tasks", "attempts"}
        ]
        if pages > PAGES or walked:
            wrong[str(statement)] = json.dumps(found, indent=1)
    assert not wrong, "\n".join(f"{asked}\n{found}" for asked, found in wrong.items())
