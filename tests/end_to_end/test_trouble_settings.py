"""docs/trouble.md, "Settings and plugins": what is written wrongly, and broken packages."""

from pathlib import Path

import pytest

from tests.end_to_end.site import Site
from tests.end_to_end.trouble import Row, agent, client, install_plugin, run, server, server_env

PLUGIN = """
from agent_core import hookimpl

class Plugin:
    def __init__(self, section, context):
        pass

    @hookimpl
    async def observ(self, event):
        pass
"""
COMMAND = """
import click

@click.command()
def Plugin():
    raise KeyError("nobody thought of this")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_a_misspelt_key_of_an_agent(site: Site, file: Path, row: Row) -> None:
    file.write_text("[agent]\n\nmax_worker = 3\n")

    row.ended(agent(site, "--settings", str(file)))

    assert not site.root.joinpath("agent-one").exists()


def test_a_misspelt_table(site: Site, file: Path, row: Row) -> None:
    file.write_text("[agnet]\nmax_workers = 3\n")

    row.ended(agent(site, "--settings", str(file)))


def test_a_wrong_type_in_the_settings_of_an_agent(site: Site, file: Path, row: Row) -> None:
    file.write_text('[agent]\nmax_workers = "many"\n')

    row.ended(agent(site, "--settings", str(file)))

    assert not site.root.joinpath("agent-one").exists()


def test_a_settings_file_that_an_agent_does_not_find(site: Site, row: Row) -> None:
    row.ended(agent(site, "--settings", "nowhere.toml"))


def test_a_misspelt_key_of_a_server(site: Site, file: Path, row: Row) -> None:
    file.write_text("[server]\nprot = 80\n")

    row.ended(server(site, "--settings", str(file)))

    assert not site.root.joinpath("server.db").exists()


def test_a_wrong_type_in_the_settings_of_a_server(site: Site, file: Path, row: Row) -> None:
    file.write_text("[server]\nport = true\n")

    row.ended(server(site, "--settings", str(file), port=""))


def test_a_settings_file_that_a_server_does_not_find(site: Site, row: Row) -> None:
    row.ended(server(site, "--settings", "nowhere.toml"))


def test_a_misspelt_key_of_a_client(site: Site, row: Row) -> None:
    _configured(site, 'ulr = "http://127.0.0.1:1"\n')

    row.ended(client(site, "tasks", url="", token=""))


def test_a_wrong_type_in_the_settings_of_a_client(site: Site, row: Row) -> None:
    _configured(site, 'url = "http://127.0.0.1:1"\ntoken = 12\n')

    row.ended(client(site, "tasks", url="", token=""))


def test_a_client_that_knows_no_control_plane(site: Site, row: Row) -> None:
    row.ended(client(site, "tasks", url="", token=""))


def test_a_client_without_a_token(site: Site, row: Row) -> None:
    row.ended(client(site, "tasks", token=""))


def _configured(site: Site, text: str) -> None:
    path = site.root / ".config" / "remotegpu" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o600)


def test_a_plugin_that_is_not_installed(site: Site, row: Row) -> None:
    row.ended(agent(site, plugins__enable='["comand_policy"]'))


def test_a_plugin_that_cannot_be_imported(site: Site, row: Row) -> None:
    path = install_plugin(site.root / "packages", "broken", "raise RuntimeError('out of luck')\n")
    env = {**site.agent_env(plugins__enable='["broken"]'), "PYTHONPATH": path}

    row.ended(run(site, "agent", env=env))

    # Installed is not enabled: it troubles nobody who does not ask for it.
    assert run(site, "plugins", env={"PYTHONPATH": path}).code == 0
    assert run(site, "plugins", env=env).code == 1


def test_a_plugin_with_a_misspelt_hook(site: Site, row: Row) -> None:
    path = install_plugin(site.root / "packages", "watcher", PLUGIN)
    env = {**site.agent_env(plugins__enable='["watcher"]'), "PYTHONPATH": path}

    row.ended(run(site, "agent", env=env))


def test_an_error_that_nobody_foresaw(site: Site, row: Row) -> None:
    path = install_plugin(site.root / "packages", "odd", COMMAND, group="agent_core.commands")
    env = {**server_env(site), "PYTHONPATH": path}

    row.ended(run(site, "odd", env=env))

    shown = run(site, "odd", env={**env, "REMOTEGPU_DEBUG": "1"})
    assert shown.code == 1
    assert 'raise KeyError("nobody thought of this")' in shown.text
    assert shown.text.splitlines()[-1].startswith("remotegpu: internal error: ")
