"""PostgreSQL as the database of one or several servers: opened, and what it refuses in words."""

import json
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from agent_control_plane import postgres_start
from agent_control_plane.db import READERS, DatabaseRefuses, Heard
from agent_control_plane.listener import Listener
from agent_core.api.wire import Code

WRITERS: Final = (
    4  # each waits for its statements; with a database in another room most of the time
)
DOWN_FOR: Final = 1.0  # seconds after a connection failed in which no other is tried
PAYLOAD: Final = 7500  # bytes of a notification; PostgreSQL takes less than 8000
_NOTIFY = text("SELECT pg_notify(:channel, :payload)")
_LOST: Final = "the server's database cannot be reached"
_STARTING: Final = "the server's database is stopping or starting"
_PASSING: Final = {
    "25006": "the server's database is read-only",
    "25P03": "the server was too slow for its database",
    "53100": "no room on the database's disk",
    "53300": "the server's database has too many connections",
    "55P03": "the database is locked by another program",
    "57014": "the server's database took too long",
    "57P01": _STARTING,
    "57P02": _STARTING,
    "57P03": _STARTING,
    "58030": "the database's disk cannot be read or written",
}
_CLASSES: Final = {
    "08": _LOST,
    "28": "the server's database does not let the server in any more",
    "3D": "the server's database is not there any more",
    "40": "too many others change the same at this moment",
    "53": "the server's database lacks what it needs to work",
}
# Another transaction was in the way: a deadlock, and a key that was not there when it was looked
# for. What it left is there at the next try.
_IN_THE_WAY: Final = frozenset({"40001", "40P01", "23505", "23503"})
_SETTINGS: Final = """\
SELECT set_config('lock_timeout', '5s', false),
       set_config('statement_timeout', '60s', false),
       set_config('idle_in_transaction_session_timeout', '15s', false),
       -- an answer after COMMIT is a promise
       set_config('synchronous_commit', CASE current_setting('synchronous_commit')
           WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false)"""
_CONNECT: Final[dict[str, Any]] = {
    "application_name": "remotegpu",
    "client_encoding": "utf8",
    "connect_timeout": 5,
    # A host that went away without a word is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class Postgres:
    """One schema of one database. Each job is a transaction of its own.

    Several in one were measured: a fifth less CPU a job, but the rows that each locks stay locked
    for all of them, and two such transactions meet in a deadlock as soon as they share two agents.
    """

    writers = WRITERS
    at_once = 1

    def __init__(self, url: URL) -> None:
        self.name = _name(url)
        self.reading = _engine(url, read_only=True)
        self.writing = _engine(url)
        try:
            self._channel = postgres_start.prepare(self.writing, self.name)
        except BaseException:
            self.close()
            raise
        self._me = uuid.uuid4().hex[:12]
        self._conninfo = {**self.writing.dialect.create_connect_args(url)[1], **_CONNECT}

    @classmethod
    def open(cls, url: str) -> "Postgres":
        """Raises SettingsError or StoreUnusable, saying what to do."""
        return cls(postgres_start.with_driver(make_url(url)))

    def in_words(self, error: Exception) -> Exception:
        if not isinstance(cause := getattr(error, "orig", error), postgres_start.driver().Error):
            return error
        state: str | None = getattr(cause, "sqlstate", None)
        lost = isinstance(cause, postgres_start.driver().OperationalError) and state is None
        words = _LOST if lost else _PASSING.get(state or "") or _CLASSES.get((state or "")[:2])
        if words is None:
            return error
        return DatabaseRefuses(Code.FULL, f"{words}; try again later")

    def again(self, error: Exception) -> bool:
        cause = getattr(error, "orig", error)
        return getattr(cause, "sqlstate", None) in _IN_THE_WAY or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        )

    def tell(self, connection: Connection, messages: Sequence[str]) -> None:
        for payload in _payloads(self._me, messages):
            connection.execute(_NOTIFY, {"channel": self._channel, "payload": payload})

    def listen(self, heard: Heard) -> Callable[[], Awaitable[None]]:
        def others(payload: str | None) -> None:
            if payload is None:
                heard(None)
                return
            sender, *messages = json.loads(payload)
            if sender != self._me:
                heard(messages)

        return Listener(self._conninfo, self._channel, others).end

    def close(self) -> None:
        self.reading.dispose()
        self.writing.dispose()


def _name(url: URL) -> str:
    """For logs and messages: where it is, and nothing that opens it."""
    shown = {name: url.query[name] for name in ("host", "options") if name in url.query}
    return url.set(drivername="postgresql", query=shown).render_as_string(hide_password=True)


def _payloads(sender: str, messages: Sequence[str]) -> list[str]:
    """As few as may carry the messages."""
    found: list[list[str]] = []
    room = 0
    for message in messages:
        size = len(json.dumps(message, ensure_ascii=False).encode()) + 2
        if size > room:
            found.append([sender])
            room = PAYLOAD - 32
        found[-1].append(message)
        room -= size
    return [json.dumps(each, ensure_ascii=False) for each in found]


def _engine(url: URL, *, read_only: bool = False) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=READERS if read_only else WRITERS,
        max_overflow=0 if read_only else 1,
        connect_args=_CONNECT,
    )
    down: list[tuple[float, Exception]] = []  # until when, and why

    @event.listens_for(engine, "do_connect")
    def _do_connect(dialect: Any, _record: object, args: Any, kwargs: Any) -> Any:
        """While the database is away, whoever waits in the line is not made to wait for it."""
        if down and time.monotonic() < down[0][0]:
            raise down[0][1].with_traceback(None)
        try:
            connection = dialect.connect(*args, **kwargs)
        except postgres_start.driver().OperationalError as error:
            down[:] = [(time.monotonic() + DOWN_FOR, error)]
            raise
        down.clear()
        return connection

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:
        connection.autocommit = True
        connection.execute(_SETTINGS)
        connection.autocommit = False
        if read_only:  # several statements see one snapshot
            connection.isolation_level = postgres_start.driver().IsolationLevel.REPEATABLE_READ
            connection.read_only = True

    return engine
