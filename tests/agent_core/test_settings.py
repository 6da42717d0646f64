"""Settings: what each source says, which one wins, and what a person reads when one is wrong."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent_core import SecretText, Section, SettingsError, Text, sources
from agent_core.settings import (
    AgentSection,
    LocalApiSection,
    LogSection,
    PluginsSection,
    ShutdownSection,
    known_tables,
    load,
)


class Client(Section):
    """Stands for a plugin's table."""

    url: Text = ""
    token: SecretText = ""
    retries: int = 3
    ratio: float = 0.5
    quick: bool = False
    names: tuple[str, ...] = ()
    limit: int | None = None


class Store(Section):
    path: Text = ""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to start in, and an /etc of our own; returns that /etc."""
    here, etc = tmp_path / "here", tmp_path / "etc"
    here.mkdir()
    etc.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sources, "ETC", etc)
    return etc


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def client(text: str = "", environ: Mapping[str, str] | None = None) -> Client:
    write(Path("settings.toml"), f"[server_client]\n{text}\n")
    return load(environ=environ or {}).section("server_client", Client)


def refusal(text: str = "", environ: Mapping[str, str] | None = None) -> str:
    """What a person reads when this table of [server_client] is asked for."""
    with pytest.raises(SettingsError) as caught:
        client(text, environ)
    return str(caught.value)


# --- which source wins


def test_without_any_source_the_defaults_hold() -> None:
    loaded = load(environ={})
    agent = loaded.section("agent", AgentSection)
    assert (agent.id, agent.machine_id, agent.runtime_dir, agent.max_workers) == ("", "", None, 2)
    assert loaded.section("shutdown", ShutdownSection).grace == 30
    assert loaded.section("plugins", PluginsSection) == PluginsSection(enable=(), disable=())
    assert loaded.section("log", LogSection) == LogSection(level="info", format="text")
    assert loaded.section("local_api", LocalApiSection).port == 8090
    assert loaded.source("agent.max_workers") == "default"


def test_the_environment_wins_over_here_wins_over_etc_and_secrets_win_over_their_file(
    places: Path,
) -> None:
    write(places / "settings.toml", "[server_client]\nurl='etc'\ntoken='etc'\nretries=1\nratio=1")
    write(places / ".secrets.toml", "[server_client]\ntoken='etc secret'\nratio=2.0")
    write(Path("settings.toml"), "[server_client]\nurl='here'\nretries=2")
    write(Path(".secrets.toml"), "[server_client]\nurl='here secret'")
    loaded = load(environ={"REMOTEGPU_SERVER_CLIENT__RETRIES": "9"})
    found = loaded.section("server_client", Client)
    assert found == Client(url="here secret", token="etc secret", retries=9, ratio=2.0)
    assert loaded.source("server_client.url") == ".secrets.toml"
    assert loaded.source("server_client.token") == str(places / ".secrets.toml")
    assert loaded.source("server_client.retries") == "environment REMOTEGPU_SERVER_CLIENT__RETRIES"


def test_tables_merge_and_lists_replace_so_a_site_can_narrow_what_a_file_allows(
    places: Path,
) -> None:
    write(places / "settings.toml", "[server_client]\nnames=['a', 'b']\nretries=1")
    write(Path("settings.toml"), "[server_client]\nnames=['c']")
    found = load(environ={}).section("server_client", Client)
    assert found.names == ("c",)
    assert found.retries == 1


def test_a_named_file_replaces_the_search_and_brings_its_own_secrets(
    places: Path, tmp_path: Path
) -> None:
    write(places / "settings.toml", "[agent]\nid='etc'")
    write(Path("settings.toml"), "[agent]\nid='here'")
    named = write(tmp_path / "site.toml", "[agent]\nmachine_id='m'")
    write(tmp_path / ".secrets.toml", "[server_client]\ntoken='t'")
    loaded = load(named, environ={})
    agent = loaded.section("agent", AgentSection)
    assert (agent.id, agent.machine_id) == ("", "m")
    assert loaded.section("server_client", Client).token == "t"


def test_a_named_file_that_is_missing_stops_the_start_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"no settings file {tmp_path}/nowhere.toml"):
        load(tmp_path / "nowhere.toml", environ={})


def test_a_directory_in_place_of_the_file_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load(tmp_path, environ={})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_in_a_usual_place_is_not_taken_for_a_missing_one() -> None:
    Path("settings.toml").write_text("")
    Path("settings.toml").chmod(0)
    with pytest.raises(SettingsError, match=r"settings\.toml cannot be read: Permission denied"):
        load(environ={})


def test_only_names_with_two_underscores_are_settings() -> None:
    environ = {"REMOTEGPU_URL": "u", "REMOTEGPU_TOKEN": "t", "REMOTEGPU_USER": "s"}
    loaded = load(environ={**environ, "AGENT__ID": "x", "AGENT_NAME": "y", "PATH": "/bin"})
    assert loaded.tables == {}


def test_the_case_of_an_environment_name_does_not_matter_but_two_spellings_are_an_error() -> None:
    loaded = load(environ={"remotegpu_Agent__MAX_workers": "7"})
    assert loaded.section("agent", AgentSection).max_workers == 7
    with pytest.raises(SettingsError, match="REMOTEGPU_AGENT__ID and REMOTEGPU_agent__id"):
        load(environ={"REMOTEGPU_AGENT__ID": "a", "REMOTEGPU_agent__id": "b"})


# --- the older agent's names


def test_the_seven_older_names_apply_and_our_own_wins_over_them() -> None:
    older = {
        "AGENT_PORT": "9000",
        "AGENT_DB_PATH": "/db",
        "AGENT_MAX_WORKERS": "5",
        "SERVER_URL": "http://older",
        "AGENT_ID": "007",
        "MACHINE_ID": "1e5",
        "AGENT_TOKEN": "12345678",
    }
    loaded = load(environ={**older, "REMOTEGPU_AGENT__MAX_WORKERS": "6"})
    agent = loaded.section("agent", AgentSection)
    assert (agent.id, agent.machine_id, agent.max_workers) == ("007", "1e5", 6)
    assert loaded.section("local_api", LocalApiSection).port == 9000
    assert loaded.section("server_client", Client) == Client(url="http://older", token="12345678")
    assert loaded.section("sqlite_store", Store).path == "/db"
    assert loaded.source("agent.id") == "environment AGENT_ID"


def test_an_older_name_wins_over_a_file() -> None:
    write(Path("settings.toml"), "[agent]\nid='file'")
    assert load(environ={"AGENT_ID": "older"}).section("agent", AgentSection).id == "older"


def test_the_port_that_kubernetes_sets_is_ignored_with_a_warning() -> None:
    loaded = load(environ={"AGENT_PORT": "tcp://10.0.0.1:8080"})
    assert loaded.section("local_api", LocalApiSection).port == 8090
    (warning,) = loaded.warnings
    assert "AGENT_PORT=tcp://10.0.0.1:8080 is not ours" in warning
    assert "REMOTEGPU_LOCAL_API__PORT" in warning


def test_an_older_name_that_is_empty_sets_nothing() -> None:
    assert load(environ={"AGENT_TOKEN": "", "AGENT_PORT": ""}).tables == {}


# --- tokens and ids are always text

WRITTEN = ["12345678", "1e5", "0x10", "true", "1_000", "+5", "0.10", "inf", "2026-01-31", "-0"]


@pytest.mark.parametrize(
    "written", [*WRITTEN, "@json 1", "@format {this}", "{{ 1 }}", "@none ", "[1]", '"q"', ""]
)
def test_a_token_in_the_environment_is_the_text_that_stands_there(written: str) -> None:
    loaded = load(environ={"REMOTEGPU_SERVER_CLIENT__TOKEN": written})
    assert loaded.section("server_client", Client).token == written


@pytest.mark.parametrize("written", WRITTEN)
def test_an_id_is_the_text_that_stands_there(written: str) -> None:
    write(Path("settings.toml"), f"[agent]\nid = {written}")
    loaded = load(environ={"REMOTEGPU_AGENT__MACHINE_ID": written})
    agent = loaded.section("agent", AgentSection)
    assert (agent.id, agent.machine_id) == (written, written)


@pytest.mark.parametrize(
    "text",
    [
        "server_client.token = 0x10",
        "server_client = {token = 0x10}",
        "[server_client]\nurl = '''\ntoken = 0x11\n'''\n" + r'"to\u006ben" = 0x10',
    ],
)
def test_a_token_whose_letters_cannot_be_found_again_must_be_quoted(text: str) -> None:
    write(Path("settings.toml"), text)
    with pytest.raises(SettingsError, match=r"server_client\.token is text; put it in quotes"):
        load(environ={}).section("server_client", Client)


@pytest.mark.parametrize("name", ["AGENT_TOKEN", "REMOTEGPU_AGENT__ID"])
def test_a_variable_that_is_not_utf8_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"environment {name} is not UTF-8"):
        load(environ={name: "\udcff"})


def test_a_value_out_of_bounds_is_told_with_the_bound() -> None:
    environ = {"REMOTEGPU_AGENT__MAX_WORKERS": "0", "REMOTEGPU_AGENT__ID": "two words"}
    with pytest.raises(SettingsError) as caught:
        load(environ=environ).section("agent", AgentSection)
    first, second = sorted(str(caught.value).splitlines())
    assert first.endswith(
        "agent.id: an id is at most 128 printable ASCII characters without blanks"
    )
    assert second.endswith("agent.max_workers must be greater than or equal to 1")


@pytest.mark.parametrize("written", WRITTEN)
def test_a_token_in_a_file_without_quotes_is_the_text_that_stands_there(written: str) -> None:
    assert client(f"token = {written} # a comment").token == written
    assert client(f"'token'={written}").token == written


@pytest.mark.parametrize(
    "token",
    [
        "@json 1",
        "@int 5",
        "@format {this.url}",
        "@jinja {{1}}",
        "@merge x",
        "@del",
        "dynaconf_merge",
    ],
)
def test_nothing_in_a_token_is_interpreted(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTO_CAST_FOR_DYNACONF", "true")
    assert client(f"token = '{token}'\nnames = ['{token}', 'x']") == Client(
        token=token, names=(token, "x")
    )


def test_variables_of_dynaconf_itself_change_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.toml", "[server_client]\nretries=77\n[agent]\nid='other'")
    for name in ("SETTINGS_FILE_FOR_DYNACONF", "INCLUDES_FOR_DYNACONF", "PRELOAD_FOR_DYNACONF"):
        monkeypatch.setenv(name, str(other))
    monkeypatch.setenv("DYNACONF_SERVER_CLIENT__RETRIES", "78")
    monkeypatch.setenv("ENVIRONMENTS_FOR_DYNACONF", "true")
    monkeypatch.setenv("MERGE_ENABLED_FOR_DYNACONF", "true")
    monkeypatch.setenv("NESTED_SEPARATOR_FOR_DYNACONF", "_")
    assert client("url = 'u'") == Client(url="u")


def test_code_beside_a_settings_file_is_never_run() -> None:
    Path("dynaconf_hooks.py").write_text("raise SystemExit('ran')")
    Path("settings.local.toml").write_text("[server_client]\nurl = 'local'")
    assert client("retries = 4") == Client(retries=4)


# --- what a person reads


def test_a_misspelt_key_names_file_line_key_and_the_nearest_name() -> None:
    message = refusal("url = 'u'\nretrys = 1")
    assert message.startswith("settings.toml, line 3: [server_client] has no key retrys")
    assert '(did you mean "retries"?)' in message


def test_a_misspelt_key_of_the_environment_names_the_variable() -> None:
    message = refusal(environ={"REMOTEGPU_SERVER_CLIENT__TOKN": "secret"})
    assert message.startswith("environment REMOTEGPU_SERVER_CLIENT__TOKN: ")
    assert '(did you mean "token"?)' in message
    assert "secret" not in message


def test_a_misspelt_table_names_file_line_and_the_nearest_name() -> None:
    write(Path("settings.toml"), "\n[agnet]\nid = 'x'")
    with pytest.raises(SettingsError) as caught:
        load(environ={})
    assert str(caught.value).startswith(
        "settings.toml, line 2: nothing here knows the table [agnet]"
    )
    assert '(did you mean "agent"?)' in str(caught.value)


def test_a_variable_of_an_unknown_table_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="environment REMOTEGPU_FOO__BAR: nothing here knows"):
        load(environ={"REMOTEGPU_FOO__BAR": "1"})


@pytest.mark.parametrize(
    "name", ["REMOTEGPU_AGENT__", "REMOTEGPU___ID", "REMOTEGPU_A__B__C", "REMOTEGPU_A__B-C"]
)
def test_a_variable_that_can_be_no_setting_stops_the_start(name: str) -> None:
    with pytest.raises(SettingsError, match="is no setting; a setting is REMOTEGPU_TABLE__KEY"):
        load(environ={name: "1"})


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("retries = '2'", "server_client.retries must be a whole number, without quotes"),
        ("retries = true", "server_client.retries must be a whole number"),
        ("retries = 2.5", "server_client.retries must be a whole number"),
        ("ratio = '2'", "server_client.ratio must be a number, without quotes"),
        ("quick = 1", "server_client.quick must be true or false"),
        ("quick = 'yes'", "server_client.quick must be true or false, without quotes"),
        ("names = 'a'", 'server_client.names must be a list, such as ["a", "b"]'),
        ("names = [1]", "server_client.names.0 must be text, in quotes"),
        ("url = ['a']", "server_client.url must be text, in quotes"),
        ("url = {a = 1}", "server_client.url must be text, in quotes"),
    ],
)
def test_a_wrong_type_names_file_line_key_and_what_is_right(line: str, right: str) -> None:
    assert refusal(line) == f"settings.toml, line 2: {right}"


@pytest.mark.parametrize(
    ("key", "text", "right"),
    [
        ("RETRIES", "two", "server_client.retries must be a whole number"),
        ("RETRIES", "", "server_client.retries must be a whole number"),
        ("QUICK", "maybe", "server_client.quick must be true or false"),
        ("RATIO", "half", "server_client.ratio must be a number"),
    ],
)
def test_a_wrong_text_names_the_variable(key: str, text: str, right: str) -> None:
    name = f"REMOTEGPU_SERVER_CLIENT__{key}"
    assert refusal(environ={name: text}).startswith(f"environment {name}: {right}")


def test_every_wrong_key_is_told_at_once() -> None:
    assert len(refusal("retries = 'x'\nquick = 3").splitlines()) == 2


def test_a_wrong_secret_is_not_repeated_in_the_error() -> None:
    assert "hunter2" not in refusal("token = ['hunter2']")


def test_a_syntax_error_names_file_and_line() -> None:
    write(Path("settings.toml"), "[agent]\nid = \n")
    with pytest.raises(SettingsError, match=r"^settings\.toml is not TOML: .*line 2"):
        load(environ={})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[agent]\nid='\xff'", "settings.toml, line 2: not UTF-8"),
        (b"id = 1", "id stands outside of a table"),
        (b"[agent]\nid=1\nid=2", "is not TOML"),
        (b"[[agent]]\nid=1", "agent stands outside of a table"),
        (b"x=" + b"[" * 5000, "is not TOML"),
        (b"#" * (2**20 + 1), "is larger than"),
        (b"[agent]\n'a.b' = 1", "has no key 'a.b'"),
        (b"[agent]\ndynaconf_merge = true", "has no key 'dynaconf_merge'"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(content: bytes, words: str) -> None:
    Path("settings.toml").write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load(environ={})
    assert words in str(caught.value)


def test_secrets_that_others_can_read_are_warned_of() -> None:
    write(Path(".secrets.toml"), "").chmod(0o640)
    (warning,) = load(environ={}).warnings
    assert warning == ".secrets.toml can be read by others (mode 0640); chmod 600 .secrets.toml"


# --- values of the environment


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("a", ("a",)),
        ("a, b ,,c", ("a", "b", "c")),
        ('["a,b", "c"]', ("a,b", "c")),
        ("['a', 'b']", ("a", "b")),
        ("[]", ()),
        ("@json [1]", ("@json [1]",)),
    ],
)
def test_a_list_is_an_array_or_words_between_commas(text: str, names: tuple[str, ...]) -> None:
    assert client(environ={"REMOTEGPU_SERVER_CLIENT__NAMES": text}).names == names


def test_a_broken_array_is_an_error_and_not_one_strange_word() -> None:
    message = refusal(environ={"REMOTEGPU_SERVER_CLIENT__NAMES": "['a', "})
    assert 'server_client.names must be a list, such as ["a", "b"]' in message


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("Yes", True), ("1", True), ("off", False), ("0", False)]
)
def test_truth_values_are_read_from_words(text: str, value: bool) -> None:
    assert client(environ={"REMOTEGPU_SERVER_CLIENT__QUICK": text}).quick is value


def test_numbers_are_read_from_text_also_where_a_key_may_be_unset() -> None:
    environ = {
        "REMOTEGPU_SERVER_CLIENT__LIMIT": " 12 ",
        "REMOTEGPU_SERVER_CLIENT__RATIO": "1e-1",
        "REMOTEGPU_SHUTDOWN__GRACE": "2m",
        "REMOTEGPU_AGENT__RUNTIME_DIR": "",
        "REMOTEGPU_LOG__LEVEL": "debug",
    }
    found = client(environ=environ)
    assert (found.limit, found.ratio) == (12, 0.1)
    loaded = load(environ=environ)
    assert loaded.section("shutdown", ShutdownSection).grace == 120
    assert loaded.section("agent", AgentSection).runtime_dir is None
    assert loaded.section("log", LogSection).level == "debug"


# --- tables


class Nested(Section):
    class Inner(Section):
        a: int = 0
        b: Text = ""

    inner: Inner = Inner()
    free: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it
    names: tuple[str, ...] = ()


def test_a_table_in_a_table_merges_too(places: Path) -> None:
    write(places / "settings.toml", "[server_client.inner]\na = 1\n[server_client.free]\nx = 1")
    write(Path("settings.toml"), "[server_client]\ninner.b = '1'\nfree = {'a.b' = 2, 'C' = 3}")
    found = load(environ={}).section("server_client", Nested)
    assert found.inner == Nested.Inner(a=1, b="1")
    assert found.free == {"a.b": 2, "C": 3}


def test_a_wrong_key_in_a_table_in_a_table_is_named() -> None:
    write(Path("settings.toml"), "[server_client.inner]\nc = 1\na = 'x'")
    with pytest.raises(SettingsError) as caught:
        load(environ={}).section("server_client", Nested)
    assert "server_client.inner.c is no key that is known here" in str(caught.value)
    assert "server_client.inner.a must be a whole number, without quotes" in str(caught.value)


def test_the_secrets_that_a_log_must_mask_are_known() -> None:
    write(Path("settings.toml"), "[server]\nagent_token = 0x10\nuser_token='u'\nport=1")
    loaded = load(environ={"AGENT_TOKEN": "hunter2"})
    assert loaded.secrets() == {"0x10", "u", "hunter2"}


def test_a_table_is_validated_only_when_somebody_asks_for_it() -> None:
    write(Path("settings.toml"), "[server_client]\nnonsense = 1\n[agent]\nid = 'a'")
    loaded = load(environ={})
    assert loaded.section("agent", AgentSection).id == "a"
    with pytest.raises(SettingsError):
        loaded.section("server_client", Client)


def test_tables_of_installed_plugins_and_commands_are_known_without_importing_them() -> None:
    assert {"agent", "sqlite_store", "server_client", "server"} <= known_tables()


def test_a_secret_is_in_no_repr(places: Path) -> None:
    loaded = load(environ={"REMOTEGPU_SERVER_CLIENT__TOKEN": "hunter2"})
    section = loaded.section("server_client", Client)
    assert section.token == "hunter2"
    assert "hunter2" not in repr(section) + str(section) + repr(loaded)


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(environ={}).section("agent", AgentSection).max_workers = 3
