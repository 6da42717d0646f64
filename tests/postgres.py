"""A PostgreSQL server for tests: a cluster of its own, on a socket in a directory of its own."""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

_PLACES = "/usr/lib/postgresql/*/bin"  # Debian's; they are on nobody's PATH
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # it is thrown away after a crash
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "deadlock_timeout": "50ms",
    "autovacuum": "off",  # no work of its own while tests count
}


def program(name: str) -> str | None:
    """The path of one of PostgreSQL's programs, the newest where there are several."""
    places = sorted(Path("/").glob(_PLACES.lstrip("/")), key=lambda p: float(p.parent.name))
    return shutil.which(name) or next(
        (str(p / name) for p in reversed(places) if (p / name).exists()), None
    )


@dataclass
class Cluster:
    """A running server."""

    directory: Path
    as_user: list[str]  # what starts a program as the owner of the cluster
    settings: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, schema: str = "public", database: str = "postgres") -> str:
        host, options = quote(str(self.directory), safe=""), quote(f"-csearch_path={schema}")
        return f"postgresql://postgres@/{database}?host={host}&options={options}"

    def query(self, text: str, values: tuple[Any, ...] = (), schema: str = "public") -> list[Any]:
        """As another program would ask it."""
        import psycopg

        with psycopg.connect(
            host=str(self.directory),
            dbname="postgres",
            user="postgres",
            autocommit=True,
            options=f"-csearch_path={schema}",
        ) as connection:
            cursor = connection.execute(text, values or None)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def schema(self) -> Iterator[str]:
        """An empty one, gone afterwards with all that is in it."""
        name = f"t{next(self._numbers)}"
        self.query(f"CREATE SCHEMA {name}")
        try:
            yield name
        finally:
            self.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'remotegpu' AND pid <> pg_backend_pid()"
            )
            self.query(f"DROP SCHEMA {name} CASCADE")

    def start(self) -> None:
        argv = [
            str(program("postgres")),
            "-D",
            str(self.directory / "data"),
            "-k",
            str(self.directory),
        ]
        for name, value in self.settings.items():
            argv += ["-c", f"{name}={value}"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([*self.as_user, *argv], stdout=log, stderr=log, cwd="/")
        self._wait()

    def stop(self, signum: int = signal.SIGINT) -> None:
        """SIGINT ends its sessions and itself; SIGQUIT is a crash."""
        if self.process is not None:
            self.process.send_signal(signum)
            self.process.wait(30)
            self.process = None

    def _wait(self) -> None:
        import psycopg

        assert self.process is not None
        deadline = time.monotonic() + 60
        while True:
            try:
                self.query("SELECT 1")
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.02)
            else:
                return


@contextlib.contextmanager
def cluster(**settings: str) -> Iterator[Cluster]:
    """Make one, start it, and remove it at the end. `settings` go over those for tests."""
    directory = Path(tempfile.mkdtemp(prefix="pg-"))  # a socket's path must be short
    made = Cluster(directory, _as_user(directory), {**_SETTINGS, **settings})
    try:
        argv = [
            str(program("initdb")),
            "-D",
            str(directory / "data"),
            "-U",
            "postgres",
            "-A",
            "trust",
        ]
        argv += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        done = subprocess.run(
            [*made.as_user, *argv], capture_output=True, text=True, check=False, cwd="/"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory)


def _as_user(directory: Path) -> list[str]:
    """PostgreSQL refuses to run as root."""
    dies_with_us = ["setpriv", "--pdeathsig=INT"]  # a test run that is killed takes it along
    if os.geteuid() != 0:
        return [*dies_with_us, "--"]
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    os.chown(directory, user.pw_uid, user.pw_gid)
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, *dies_with_us[1:], "--"]
