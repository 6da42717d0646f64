"""What the load tools put on a site: its durable defaults, many tasks at once, a yardstick."""

import contextlib
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.end_to_end.site import Site, site_in, wait_for
from tests.load.measuring import Crew, halted
from tests.postgres import cluster, program

# What the test site shortens is as a user has it.
DEFAULTS = {
    "server_client__poll_interval": 5,
    "server_client__heartbeat_interval": 30,
    "shutdown__grace": 30,
    "subprocess_executor__grace": 10,
    "log__level": "warning",
}
DATABASES = ("sqlite", "postgresql")
PATIENCE = 900.0  # seconds for one round


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


@contextlib.contextmanager
def a_site(root: Path) -> Iterator[Site]:
    """A site of its own; what its processes have said goes to standard error."""
    root.mkdir(exist_ok=True, parents=True)
    with contextlib.redirect_stdout(sys.stderr), site_in(root) as site:
        yield site


class Books:
    """The server's database, past the server: asking that would cost it time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._mark = "?"
        if not url.startswith("sqlite:///"):
            self._mark = "%s"

    def _open(self) -> Any:
        if self._mark == "?":
            return sqlite3.connect(self._url.removeprefix("sqlite:///"), timeout=30)
        import psycopg

        return psycopg.connect(self._url)

    def value(self, statement: str, *values: object) -> Any:
        """One value; `?` stands for each of `values`."""
        with contextlib.closing(self._open()) as database:
            found = database.execute(statement.replace("?", self._mark), values)
            return found.fetchone()[0]

    def finished(self, since: float) -> int:
        query = "SELECT count(*) FROM tasks WHERE created_at >= ? AND status = 'completed'"
        return int(self.value(query, since))

    def multiply(self, task_id: str, count: int) -> None:
        """So many waiting tasks like this one: submitting them would take minutes."""
        with contextlib.closing(self._open()) as database:
            found = database.execute("SELECT * FROM tasks LIMIT 0")
            names = [each[0] for each in found.description if each[0] not in ("seq", "id")]
            columns = ", ".join(f'"{name}"' for name in names)
            statement = (
                f"INSERT INTO tasks (id, {columns}) SELECT {self._mark}, {columns}"
                f" FROM tasks WHERE id = {self._mark}"
            )
            with contextlib.closing(database.cursor()) as cursor:
                cursor.executemany(statement, [(str(uuid.uuid4()), task_id) for _ in range(count)])
            database.commit()

    def open_to_all(self, machine_id: str) -> None:
        """What waits for that machine may run anywhere from now on, all of it at once."""
        with contextlib.closing(self._open()) as database:
            statement = "UPDATE tasks SET machine_id = '', ready_for = '' WHERE machine_id = ?"
            database.execute(statement.replace("?", self._mark), (machine_id,))
            database.commit()

    def forget_waiting(self) -> None:
        """Remove what nobody holds."""
        with contextlib.closing(self._open()) as database:
            database.execute("DELETE FROM tasks WHERE status = 'pending'")
            database.commit()


@contextlib.contextmanager
def database_of(site: Site, kind: str) -> Iterator[psutil.Process | None]:
    """Give the site's server its database: a file of its own, or a PostgreSQL of its own.

    Brings PostgreSQL's first process, whose children serve.
    """
    if kind == "sqlite":
        yield None
        return
    if program("initdb") is None:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql, or use sqlite")
    # As a user has it: what tests switch off, since they throw it away, is on.
    with cluster(fsync="on", full_page_writes="on", autovacuum="on") as made:
        assert made.process is not None
        site.database = made.url()
        try:
            yield psutil.Process(made.process.pid)
        finally:
            if site.server is not None and site.server.alive:
                site.server.stop()  # before its database


def run_tasks(site: Site, crew: Crew, count: int, **fields: Any) -> tuple[float, dict[str, float]]:
    """Seconds from the moment at which the agent may go on to the last reported result, and CPU.

    Not from the first grant: its claim waits at the server and is answered while it stands still.
    """
    books = Books(site.database)
    since = time.time()
    with halted(crew.agent, crew.supervisor):
        for _ in range(count):
            site.submit("/bin/true", exec=True, **fields)
        before = crew.cpu()
    begun = time.time()
    wait_for(lambda: books.finished(since) >= count, f"{count} tasks completed", PATIENCE)
    spent = {name: now - before[name] for name, now in crew.cpu().items()}
    ended = books.value("SELECT max(ended_at) FROM tasks WHERE created_at >= ?", since)
    return float(ended) - begun, spent


def run_xargs(count: int, at_once: int = 2) -> float:
    """Seconds that the same processes take without anything around them."""
    begun = time.perf_counter()
    subprocess.run(
        ["xargs", f"-P{at_once}", "-n1", "/bin/true"],
        input="\n".join(map(str, range(count))).encode(),
        check=True,
    )
    return time.perf_counter() - begun
