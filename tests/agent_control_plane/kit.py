"""What the control plane's tests share: a server to talk to, agents and users that talk to it."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_control_plane.app import create_app
from agent_control_plane.db import Database
from agent_control_plane.plane import Plane
from agent_control_plane.settings import ServerSettings
from agent_core.api.http import QuietServer, listen
from agent_core.testing.clock import TurnedClock
from tests.postgres import Cluster

AGENT_TOKEN = "agent-token-0123456789"
USER_TOKEN = "user-token-0123456789"
BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.engines)]  # databases
Answer = tuple[int, dict[str, Any]]  # business code, data or {"message": …}


@dataclass
class Agent:
    """Makes calls as one agent."""

    client: httpx.AsyncClient
    id: str = "agent-1"
    machine: str = "machine-1"
    older: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    async def call(self, path: str, **body: Any) -> Answer:
        headers = {"X-Agent-Token": AGENT_TOKEN, **self.headers}
        if not self.older:
            headers["X-Agent-Protocol"] = "1"
        reply = await self.client.post(
            f"/api/v1/agent/{path}", json={"agent_id": self.id, **body}, headers=headers
        )
        return answer(reply)

    async def register(self, **more: Any) -> dict[str, Any]:
        code, data = await self.call("register", machine_id=self.machine, **more)
        assert code == 0, data
        return data

    async def claim(
        self, limit: int = 10, request_id: str | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        body: dict[str, Any] = {"machine_id": self.machine, "limit": limit, **more}
        if request_id is not None:
            body["request_id"] = request_id
        code, data = await self.call("tasks/claim", **body)
        assert code == 0, data
        return list(data["tasks"])

    async def one(self) -> dict[str, Any]:
        """Claim exactly one task."""
        tasks = await self.claim(1)
        assert len(tasks) == 1, tasks
        return tasks[0]

    async def tell(self, task: dict[str, Any], verb: str, **more: Any) -> Answer:
        return await self.call(
            f"tasks/{task['id']}/{verb}", **{"attempt_id": task["attempt_id"], **more}
        )

    async def start(self, task: dict[str, Any]) -> Answer:
        return await self.tell(task, "start")

    async def renew(self, task: dict[str, Any]) -> Answer:
        return await self.tell(task, "lease/renew", extend_sec=300)

    async def complete(
        self, task: dict[str, Any], exit_code: int | None = 0, **more: Any
    ) -> Answer:
        return await self.tell(task, "complete", exit_code=exit_code, **more)


@dataclass
class User:
    """Makes calls as a user."""

    client: httpx.AsyncClient

    async def call(self, method: str, path: str = "", **more: Any) -> Answer:
        return answer(await self.raw(method, path, **more))

    async def raw(
        self, method: str, path: str = "", *, key: str | None = None, **more: Any
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {USER_TOKEN}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        return await self.client.request(method, f"/api/v1/tasks{path}", headers=headers, **more)

    async def submit(self, command: str = "true", *, key: str | None = None, **more: Any) -> Any:
        code, data = await self.call("POST", key=key, json={"command": command, **more})
        assert code == 0, data
        return data

    async def get(self, task: dict[str, Any]) -> dict[str, Any]:
        code, data = await self.call("GET", f"/{task['id']}")
        assert code == 0, data
        return data

    async def cancel(self, task: dict[str, Any], reason: str = "") -> Answer:
        return await self.call("POST", f"/{task['id']}/cancel", json={"reason": reason})


def answer(reply: httpx.Response) -> Answer:
    """Code and data of an envelope; an answer that is none fails the test."""
    body = reply.json()
    assert set(body) == {"code", "message", "data"}, body
    assert type(body["code"]) is int
    assert (body["code"] == 0) == (reply.status_code < 300), (reply.status_code, body)
    assert reply.headers["date"].endswith("GMT")
    return body["code"], body["data"] if body["code"] == 0 else {"message": body["message"]}


@dataclass(frozen=True)
class Place:
    """An empty database, and how another program asks it."""

    url: str
    query: Callable[..., list[Any]]  # its text with ? for each of the values

    @classmethod
    def file(cls, path: Path) -> "Place":
        def query(text: str, *values: Any) -> list[Any]:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                found = connection.execute(text, values).fetchall()
                connection.commit()
                return found

        return cls(f"sqlite:///{path}", query)

    @classmethod
    def schema(cls, cluster: Cluster, name: str) -> "Place":
        def query(text: str, *values: Any) -> list[Any]:
            return cluster.query(text.replace("?", "%s"), values, name)

        return cls(cluster.url(name), query)


@dataclass
class House:
    """A running server and who talks to it."""

    url: str
    place: Place
    clock: TurnedClock
    plane: Plane
    client: httpx.AsyncClient

    @property
    def user(self) -> User:
        return User(self.client)

    def agent(self, name: str = "1", *, older: bool = False, **headers: str) -> Agent:
        return Agent(self.client, f"agent-{name}", f"machine-{name}", older, headers)

    async def pass_time(self, seconds: float) -> None:
        """Turn the clock, and let the server notice."""
        self.clock.jump_wall(seconds)
        await self.plane.sweep()

    def rows(self, task: dict[str, Any]) -> list[Any]:
        """Everything on disk about a task, to show that a call changed nothing."""
        found = self.place.query("SELECT * FROM tasks WHERE id = ?", task["id"])
        for table in ("attempts", "outputs"):
            found += self.place.query(
                f"SELECT * FROM {table} WHERE task_id = ? ORDER BY 1, 2", task["id"]
            )
        return found

    @property
    def path(self) -> Path:
        """Of a database that is a file."""
        return Path(self.place.url.removeprefix("sqlite:///"))


@contextlib.asynccontextmanager
async def open_house(place: Place | Path, **settings: Any) -> AsyncIterator[House]:
    """A server on a database, new or left by another; a path is a file of SQLite's."""
    place = Place.file(place) if isinstance(place, Path) else place
    clock = TurnedClock()
    table = ServerSettings(
        **{
            "agent_token": AGENT_TOKEN,
            "user_token": USER_TOKEN,
            "database": place.url,
            **settings,
        }
    )
    plane = Plane(table, Database.open(table.database), clock)
    async with serving(create_app(plane), plane.stop) as url:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
            yield House(url, place, clock, plane, client)


@contextlib.asynccontextmanager
async def serving(app: Any, on_stop: Callable[[], None] | None = None) -> AsyncIterator[str]:
    """The app on a socket, until the block ends."""
    listener = listen("127.0.0.1", 0)
    server = QuietServer(app, grace=5, on_stop=on_stop)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        await running
