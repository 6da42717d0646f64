"""Tables of sites, files in YAML, and the older agent's own file."""

from pathlib import Path

import pytest

from agent_core import sources
from agent_core.errors import SettingsError
from agent_core.sections import AgentSection, LogSection
from agent_core.settings import Loaded, load
from agent_core_plugins.command_policy import CommandPolicySettings
from agent_core_plugins.server_client import ServerClient
from agent_core_plugins.subprocess_executor import SubprocessExecutor

SITES = """\
[default.agent]
max_workers = 2
labels = {rack = "1", kind = "lab"}
[default.command_policy]
allowed_commands = ["ls", "cat"]

[site_b.agent]
max_workers = 8
labels = {rack = "7"}

[site_b.command_policy]
allowed_commands = ["ls"]
"""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to start in, and an /etc of our own; returns that /etc."""
    here, etc = tmp_path / "here", tmp_path / "etc"
    here.mkdir()
    etc.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sources, "ETC", etc)
    return etc


def agent(loaded: Loaded) -> AgentSection:
    return loaded.section("agent", AgentSection)


def refusal(name: str, text: str, environ: dict[str, str] | None = None) -> str:
    Path(name).write_text(text)

    def start() -> None:
        loaded = load(environ=environ or {})
        agent(loaded)
        loaded.section("log", LogSection)
        loaded.section("command_policy", CommandPolicySettings)

    with pytest.raises(SettingsError) as caught:
        start()
    return str(caught.value)


# --- sites


def test_a_site_gets_its_tables_over_those_of_default_key_by_key_and_its_lists_instead() -> None:
    Path("settings.toml").write_text(SITES)
    plain, site = load(environ={}), load(environ={"REMOTEGPU_SITE": "site_b"})
    assert (agent(plain).max_workers, agent(site).max_workers) == (2, 8)
    assert agent(site).labels == {"rack": "7", "kind": "lab"}
    policy = site.section("command_policy", CommandPolicySettings)
    assert policy.allowed_commands == ("ls",)
    assert load(environ={"REMOTEGPU_SITE": "default"}).source("agent.max_workers") != "default"


def test_tables_without_a_site_and_those_of_default_stand_side_by_side(places: Path) -> None:
    (places / "settings.toml").write_text(SITES)
    Path("settings.toml").write_text("[agent]\nmax_workers = 3\n[site_b.agent]\nid = 'b'\n")
    assert agent(load(environ={})).max_workers == 3
    found = agent(load(environ={"REMOTEGPU_SITE": "site_b"}))
    assert (found.max_workers, found.id) == (3, "b")  # the nearer file wins, whosever the table


def test_the_secrets_of_a_site_are_its_own() -> None:
    Path("settings.toml").write_text(SITES)
    secrets = Path(".secrets.yaml")
    secrets.write_text(
        "default: {server_client: {token: 0x10}}\nsite_b:\n  server_client:\n    token: 1e5\n"
    )
    secrets.chmod(0o600)
    for site, token in (("", "0x10"), ("site_b", "1e5")):
        loaded = load(environ={"REMOTEGPU_SITE": site})
        assert loaded.section("server_client", ServerClient.Settings).token == token
        assert loaded.warnings == ()


@pytest.mark.parametrize("name", ["settings.toml", "settings.yaml"])
@pytest.mark.parametrize("site", ["", "site_b"])
def test_a_mistake_in_a_sites_table_stops_every_start(name: str, site: str) -> None:
    toml = "[site_b.agent]\nmax_workers = 8\n[site_b.agnet]\nid = 'x'\n"
    text = toml if name.endswith("toml") else "site_b:\n  agent: {}\n  agnet: {id: x}\n"
    told = refusal(name, text, {"REMOTEGPU_SITE": site})
    assert told.startswith(f"{name}, line 3: nothing here knows the table [site_b.agnet]")
    assert 'did you mean "agent"' in told


def test_a_misspelt_site_is_told_with_those_there_are() -> None:
    told = refusal("settings.toml", SITES, {"REMOTEGPU_SITE": "site-b"})
    assert told.startswith("environment REMOTEGPU_SITE=site-b: no settings file has tables of")
    assert 'did you mean "site_b"' in told


def test_a_wrong_key_of_a_site_names_its_own_line() -> None:
    text = "[default.agent]\nmax_workers = 1\n[ site_b . agent ]\nmax_worker = 8\n"
    told = refusal("settings.toml", text, {"REMOTEGPU_SITE": "site_b"})
    assert told.startswith("settings.toml, line 4: [agent] has no key max_worker")
    told = refusal(
        "settings.toml", text.replace("worker =", "workers = 0 #"), {"REMOTEGPU_SITE": "site_b"}
    )
    assert told.startswith("settings.toml, line 4: agent.max_workers must be greater than")


def test_two_files_in_one_place_are_not_guessed_between() -> None:
    Path("agent.yaml").write_text("port: 8091\n")
    told = refusal("settings.toml", "")
    assert told.startswith("settings.toml and agent.yaml both exist")


# --- YAML


def test_a_file_in_yaml_has_the_tables_of_one_in_toml() -> None:
    Path("settings.yaml").write_text(
        "agent:\n  max_workers: 4\n  id: 010\n  labels: {day: 1:30, on: yes}\n"
        "command_policy:\n  allowed_commands:\n    - ls\n    - 'no'\nshutdown: {grace: 45s}\nlog:\n"
    )
    loaded = load(environ={})
    assert (agent(loaded).max_workers, agent(loaded).id) == (4, "010")
    assert agent(loaded).labels == {"day": "1:30", "on": "yes"}
    policy = loaded.section("command_policy", CommandPolicySettings)
    assert policy.allowed_commands == ("ls", "no")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("agent: {max_workers: 1\n", "settings.yaml, line 2: not YAML"),
        ("agent:\n  id: a\n  id: b\n", "settings.yaml, line 3: agent.id stands in line 2 already"),
        ("agent:\n  max_worker: 1\n", "settings.yaml, line 2: [agent] has no key max_worker"),
        ("agent:\n  max_workers: many\n", "settings.yaml, line 2: agent.max_workers must be"),
        ("agnet:\n  id: a\n", "settings.yaml, line 1: nothing here knows the table [agnet]"),
        ("agent: &a\n  id: x\nlog: *a\n", "settings.yaml, line 1: anchors and aliases"),
        ("agent:\n  id: !!python/name:os.system\n", "settings.yaml, line 2: the tag"),
        ("- a\n", "settings.yaml: must be keys with values"),
        ("agent: 3\n", "settings.yaml: agent stands outside of a table"),
        ("? [a]\n: b\n", "settings.yaml, line 1: a key must be a word"),
        ("command_policy:\n  allowed_commands: ls\n", "settings.yaml, line 2: command_policy."),
    ],
)  # fmt: skip
def test_what_is_wrong_in_yaml_is_told_with_its_line(text: str, told: str) -> None:
    assert refusal("settings.yaml", text).startswith(told)


# --- the older agent's file

OLDER = """\
port: 8091
db_path: /var/lib/agent/tasks.db
max_workers: 3
server:
  url: http://gpu.example.org:8080
  agent_id: "007"
  machine_id: 12345678
  token: 1e5
  timeout: 20s
poll:
  interval: 7s
  batch_size: 12
log:
  level: warn
  format: console
limits:
  max_output_size: 2097152
security:
  allowed_commands: [ls, cat]
  blocked_patterns:
    - 'rm -rf'
"""


@pytest.mark.parametrize("name", ["agent.yaml", "any.yml"])
def test_the_older_agents_file_loads_unchanged(name: str) -> None:
    path = Path(name)
    path.write_text(OLDER)
    loaded = load(path if name == "any.yml" else None, environ={})
    server = loaded.section("server_client", ServerClient.Settings)
    assert (server.url, server.token) == ("http://gpu.example.org:8080", "1e5")
    assert (server.timeout, server.poll_interval, server.batch_size) == (20, 7, 12)
    assert (agent(loaded).id, agent(loaded).machine_id) == ("007", "12345678")
    assert agent(loaded).max_workers == 3
    log = loaded.section("log", LogSection)
    assert (log.level, log.format) == ("warning", "text")
    executor = loaded.section("subprocess_executor", SubprocessExecutor.Settings)
    assert executor.max_output_size == 2 * 2**20
    policy = loaded.section("command_policy", CommandPolicySettings)
    assert policy.allowed_commands == ("ls", "cat")
    assert policy.blocked_patterns == ("rm -rf",)


def test_the_environment_wins_over_the_older_file_too() -> None:
    Path("agent.yaml").write_text(OLDER)
    assert agent(load(environ={"AGENT_MAX_WORKERS": "9"})).max_workers == 9


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("max_worker: 3", "agent.yaml, line 2: the older agent's settings have no key max_worker"),
        ("server: {urll: x}", "agent.yaml, line 2: the older agent's settings have no key server."),
        ("max_workers: none", "agent.yaml, line 2: agent.max_workers must be a whole number"),
        ("log: {level: loud}", "agent.yaml, line 2: log.level must be 'debug'"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_older_file_is_told_with_its_line(line: str, told: str) -> None:
    assert refusal("agent.yaml", f"port: 8091\n{line}\n").startswith(told)
