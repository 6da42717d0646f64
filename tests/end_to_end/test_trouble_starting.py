"""docs/trouble.md, "Starting": ports, state directories and databases that cannot be used."""

import contextlib
import signal
import socket
import sqlite3
import stat
from pathlib import Path

from tests.end_to_end.site import Site, wait_for
from tests.end_to_end.trouble import Row, agent, obeying_modes, server, small_disk


def _database(path: Path) -> Path:
    """A database with a table in it."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE tasks (id)")
        db.executemany("INSERT INTO tasks VALUES (?)", [("x" * 500,)] * 200)
        db.commit()
    return path


def _corrupt(path: Path) -> bytes:
    data = bytearray(_database(path).read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)
    return bytes(data)


def test_a_state_directory_that_is_missing_is_made(site: Site, row: Row) -> None:
    started = site.start_agent(agent__state_dir=site.root / "not" / "yet" / "there")

    started.says("ready")

    row.went_on(started.text)
    made = site.root / "not" / "yet" / "there"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert (made / "agent.db").exists()


def test_a_state_directory_that_cannot_be_written(site: Site, row: Row) -> None:
    closed = site.root / "closed"
    closed.mkdir(mode=0o500)

    row.ended(agent(site, enter=obeying_modes(), agent__state_dir=closed / "agent"))

    assert list(closed.iterdir()) == []


def test_a_state_directory_on_a_file_system_that_takes_nothing(site: Site, row: Row) -> None:
    row.ended(agent(site, agent__state_dir="/proc/remotegpu"))


def test_a_file_where_the_state_directory_should_be(site: Site, row: Row) -> None:
    site.root.joinpath("agent-one").write_text("mine")

    row.ended(agent(site))

    assert site.root.joinpath("agent-one").read_text() == "mine"


def test_a_state_directory_on_a_full_disk(site: Site, row: Row) -> None:
    with small_disk(site.root / "disk", "64k") as disk:
        disk.fill()

        row.ended(agent(site, enter=disk.enter, agent__state_dir=disk.inside / "agent"))

        disk.empty()
        settings = {"agent__state_dir": disk.inside / "agent"}
        again = agent(site, enter=disk.enter, plugins__enable='["no_such"]', **settings)
        assert "no_such" in again.text  # the directory itself can be used now


def test_a_state_directory_that_another_agent_holds(site: Site, row: Row) -> None:
    first = site.start_agent()
    first.says("ready")

    row.ended(agent(site))

    assert first.stop() == 0
    second = site.start_agent()
    second.says("ready")


def test_an_agents_database_that_is_corrupt(site: Site, row: Row) -> None:
    path = site.root / "agent-one" / "agent.db"
    before = _corrupt(path)

    row.ended(agent(site))

    assert path.read_bytes() == before


def test_an_agents_database_that_another_program_locks(site: Site, row: Row) -> None:
    path = _database(site.root / "agent-one" / "agent.db")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")

        row.ended(agent(site))


def test_an_agents_database_that_another_agent_uses(site: Site, row: Row) -> None:
    first = site.start_agent()
    first.says("ready")

    row.ended(agent(site, agent__state_dir=site.root / "two", sqlite_store__path=site.file().path))

    assert first.alive


def test_an_agents_database_that_is_newer(site: Site, row: Row) -> None:
    made = site.start_agent()
    made.says("ready")
    assert made.stop() == 0
    path = site.root / "agent-one" / "agent.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        [version] = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {version + 1}")
    before = path.read_bytes()

    row.ended(agent(site))

    assert path.read_bytes() == before


def test_an_agents_database_on_a_full_disk(site: Site, row: Row) -> None:
    with small_disk(site.root / "disk", "64k") as disk:
        disk.fill()

        row.ended(agent(site, enter=disk.enter, sqlite_store__path=disk.inside / "agent.db"))


def test_a_servers_port_that_is_taken(site: Site, row: Row) -> None:
    with socket.create_server(("127.0.0.1", site.port)):
        row.ended(server(site))

    assert not site.root.joinpath("server.db").exists()


def test_a_servers_database_that_is_corrupt(site: Site, row: Row) -> None:
    before = _corrupt(site.root / "server.db")

    row.ended(server(site))

    assert site.root.joinpath("server.db").read_bytes() == before


def test_a_servers_database_that_another_program_locks(site: Site, row: Row) -> None:
    with contextlib.closing(sqlite3.connect(_database(site.root / "server.db"))) as other:
        other.execute("BEGIN EXCLUSIVE")

        row.ended(server(site))


def test_a_servers_database_that_another_server_uses(site: Site, row: Row) -> None:
    site.start_server()

    row.ended(server(site, port=0))

    assert site.call("GET", "/api/v1/tasks")[0] == 200


def test_a_servers_database_that_is_newer(site: Site, row: Row) -> None:
    path = _database(site.root / "server.db")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")
    before = path.read_bytes()

    row.ended(server(site))

    assert path.read_bytes() == before


def test_a_servers_database_that_cannot_be_written(site: Site, row: Row) -> None:
    closed = site.root / "closed"
    closed.mkdir(mode=0o500)

    row.ended(server(site, enter=obeying_modes(), database=f"sqlite:///{closed}/server.db"))

    assert list(closed.iterdir()) == []


def test_a_servers_database_on_a_full_disk(site: Site, row: Row) -> None:
    with small_disk(site.root / "disk", "64k") as disk:
        disk.fill()

        row.ended(server(site, enter=disk.enter, database=f"sqlite:///{disk.inside}/server.db"))


def test_a_server_without_a_token(site: Site, row: Row) -> None:
    row.ended(server(site, user_token=""))

    assert not site.root.joinpath("server.db").exists()


def test_ctrl_c_ends_a_server_gently(site: Site, row: Row) -> None:
    running = site.start_server()
    task_id = site.submit("true")

    running.signal(signal.SIGINT)
    code = running.popen.wait(60)

    row.ended_with(code, running.text)
    site.start_server()
    assert site.task(task_id)["status"] == "pending"


def test_a_second_ctrl_c_ends_a_server_at_once(site: Site, row: Row) -> None:
    running = site.start_server()
    with socket.create_connection(("127.0.0.1", site.port)) as dawdling:
        head = f"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.user_token}"
        dawdling.sendall(f"{head}\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert site.call("GET", "/api/v1/tasks")[0] == 200
        running.signal(signal.SIGINT)
        wait_for(lambda: not _answers(site.port), "it takes no new connection")
        assert running.alive

        running.signal(signal.SIGINT)

        row.ended_with(running.popen.wait(60), running.text)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
