"""Scenario 7: no settings file, only environment variables, the legacy names too."""

from pathlib import Path

from tests.end_to_end.records import AgentFile
from tests.end_to_end.site import Process, Site, wait_for


def _agent(site: Site, **environ: object) -> Process:
    """An agent with these variables alone, in a directory without any settings."""
    env = {
        "REMOTEGPU_AGENT__STATE_DIR": str(site.root / "state"),
        "REMOTEGPU_AGENT__RUNTIME_DIR": str(site.runtime),
        "REMOTEGPU_SERVER_CLIENT__POLL_INTERVAL": "0.2",
        **{name: str(value) for name, value in environ.items()},
    }
    site.agents["env"] = Process(["agent"], env, site.root / "agent-env.log")
    return site.agents["env"]


def test_scenario_7_the_legacy_names_alone_make_an_agent(site: Site, tmp_path: Path) -> None:
    site.start_server()
    database = tmp_path / "elsewhere" / "tasks.db"
    database.parent.mkdir()
    _agent(
        site,
        SERVER_URL=site.url,
        AGENT_TOKEN=site.agent_token,
        AGENT_ID="agent-of-old",
        MACHINE_ID="0042",
        AGENT_MAX_WORKERS=3,
        AGENT_DB_PATH=database,
        AGENT_PORT=18090,
    )
    gate = site.gate()
    tasks = [site.submit_marked(gate.wait, machine_id="0042") for _ in range(4)]

    wait_for(lambda: len(site.marks("begin")) == 3, "three tasks run at once")
    held = [site.wait(mark.task_id, "running") for mark in site.marks("begin")]
    assert {task["assigned_agent_id"] for task in held} == {"agent-of-old"}
    running = AgentFile(database).rows("SELECT * FROM tasks WHERE status = 'running'")
    assert len(running) == 3
    assert len(site.marks("begin")) == 3  # the fourth waits for a slot
    gate.open()
    ended = [site.wait(task_id) for task_id in tasks]
    assert [(task["status"], task["machine_id"]) for task in ended] == [("completed", "0042")] * 4


def test_scenario_7_our_own_names_alone_make_an_agent_and_tasks_see_none_of_them(
    site: Site,
) -> None:
    site.start_server()
    _agent(
        site,
        REMOTEGPU_SERVER_CLIENT__URL=site.url,
        REMOTEGPU_SERVER_CLIENT__TOKEN=site.agent_token,
        REMOTEGPU_AGENT__ID="agent-of-ours",
        REMOTEGPU_SUBPROCESS_EXECUTOR__ENVIRONMENT='["PATH", "SHOWN_*"]',
        SHOWN_HERE="yes",
        HIDDEN="no",
    )

    task = site.wait(site.submit("env", env={"OWN": "mine"}))

    names = {line.partition("=")[0] for line in task["stdout"].splitlines()}
    assert task["assigned_agent_id"] == "agent-of-ours"
    assert {"PATH", "SHOWN_HERE", "OWN"} <= names
    assert "HIDDEN" not in names
    assert {name for name in names if name.startswith("REMOTEGPU_")} == {
        *("REMOTEGPU_TASK_ID", "REMOTEGPU_ATTEMPT_ID", "REMOTEGPU_RUN_NO"),
        *("REMOTEGPU_START_ID", "REMOTEGPU_SCRATCH", "REMOTEGPU_PROGRESS"),
    }
    assert site.agent_token not in task["stdout"]


def test_scenario_7_a_wrong_legacy_value_stops_the_start_and_is_named(site: Site) -> None:
    for name, value in [("AGENT_PORT", "many"), ("AGENT_MAX_WORKERS", "0")]:
        agent = _agent(site, **{name: value})

        assert agent.popen.wait(60) == 2  # as for anything that was asked for wrongly
        assert name in agent.text
        assert "Traceback" not in agent.text
