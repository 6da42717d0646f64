"""The same streams of submits, claims, ends, cancels and time as on SQLite, on PostgreSQL."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from agent_control_plane.postgres_start import with_driver
from agent_control_plane.tables import metadata
from tests.agent_control_plane.test_queue_life import QueueLife
from tests.postgres import Cluster


@pytest.mark.engines
def test_whatever_happens_to_whom_it_is_due(postgres: Cluster) -> None:
    with postgres.schema() as name:
        engine = create_engine(with_driver(make_url(postgres.url(name))))
        metadata.create_all(engine)
        kind: Any = type("OnPostgres", (QueueLife,), {"engine": engine})
        slow = settings(
            max_examples=15,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(kind, settings=slow)
        engine.dispose()
