"""An agent that tells in batches, and a server that serves many examples of one property."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.agent_control_plane.kit import Agent, Answer, House, open_house


@contextlib.contextmanager
def one_house(path: Path) -> Iterator[tuple[House, asyncio.Runner]]:
    """A server whose loop runs while an example does."""
    with asyncio.Runner() as runner:
        context = open_house(path)
        house = runner.run(context.__aenter__())
        try:
            yield house, runner
        finally:
            runner.run(context.__aexit__(None, None, None))


class Teller:
    """Numbers events as the database of an agent would, and tells them."""

    def __init__(self, agent: Agent, stream: str = "stream-1") -> None:
        self.agent = agent
        self.stream = stream
        self._seq = 0

    def event(self, task: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
        """One that is on record at the agent; it gets its number when it is first told."""
        return {**self.passing(task, kind, **more), "seq": None}

    def passing(self, task: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
        """One that is not: renew, progress."""
        of = {"task_id": task["id"], "attempt_id": task["attempt_id"]}
        return {"seq": 0, "kind": kind, **of, "run_no": 1, **more}

    async def call(self, *events: Any, **more: Any) -> Answer:
        for event in events:
            if isinstance(event, dict) and event.get("seq", 0) is None:
                self._seq += 1
                event["seq"] = self._seq
        body = {"machine_id": self.agent.machine, "stream": self.stream, "events": list(events)}
        return await self.agent.call("events", **{**body, **more})

    async def tell(self, *events: Any) -> list[dict[str, Any]]:
        code, data = await self.call(*events)
        assert code == 0, data
        return list(data["results"])

    async def codes(self, *events: Any) -> list[int]:
        return [each["code"] for each in await self.tell(*events)]
