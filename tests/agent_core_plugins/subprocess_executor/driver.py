"""A minimal agent in a process of its own, to be killed: a ledger in the place of the store.

Each start is written to the ledger before it is tried, as begun with its handle after it, and its
end when it is known. Each slot hands its next start over while the one before it runs, and takes
some of them back. Started again, it finds out what became of everything without an end. The tasks
write their own marks when they begin and end.
"""

import asyncio
import json
import os
import sys
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import structlog

from agent_core import (
    AgentHandle,
    Ahead,
    Execution,
    Instant,
    Key,
    Launch,
    Lost,
    NeverRan,
    NeverStarted,
    PluginContext,
    Task,
)
from agent_core.clock import SystemClock
from agent_core_plugins.subprocess_executor import SubprocessExecutor

IN_FLIGHT = 3
SCRIPT = """echo "began $REMOTEGPU_START_ID" >>"$MARKS"; sleep 0.0$((CODE % 6))
echo "out $CODE"; echo "ended $REMOTEGPU_START_ID" >>"$MARKS"; exit $CODE"""


class Nobody:
    """An agent whose every task has its end."""

    asked = False

    async def tasks(self, *_: object, **__: object) -> list[Task]:
        self.asked = True
        return []


class Driver:
    def __init__(self, base: Path, runtime: Path) -> None:
        self._base = base
        self._clock = SystemClock()
        (base / "state").mkdir(exist_ok=True, mode=0o700)
        self._executor = SubprocessExecutor(
            SubprocessExecutor.Settings(),
            PluginContext(
                agent_id="driver",
                machine_id="machine",
                state_dir=base / "state",
                runtime_dir=runtime,
                max_workers=IN_FLIGHT,
                clock=self._clock,
                log=structlog.get_logger(),
            ),
        )
        self._ledger = os.open(base / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _write(self, what: str, start_id: str, **facts: Any) -> None:
        line = json.dumps({"what": what, "id": start_id, **facts}) + "\n"
        os.write(self._ledger, b"\n" + line.encode())  # a line before it may be torn

    def _launch(self, start_id: str, code: int, stored_at: Instant, handle: Any) -> Launch:
        return Launch(
            start_id=start_id,
            key=Key(start_id, ""),
            run_no=1,
            argv=("/bin/sh", "-c", SCRIPT),
            text=SCRIPT,
            env={
                "PATH": "/usr/bin:/bin",
                "REMOTEGPU_START_ID": start_id,
                "MARKS": str(self._base / "marks"),
                "CODE": str(code),
            },
            cwd=str(self._base),
            scratch=str(self._base),
            progress=str(self._base / "progress"),
            stored_at=stored_at,
            handle=handle,
        )

    async def recover(self) -> None:
        await asyncio.gather(*(self._find(entry) for entry in unended(self._base)))

    async def _find(self, entry: dict[str, Any]) -> None:
        start_id, handle = entry["id"], entry.get("handle")
        stored_at = Instant(**entry["stored_at"])
        launch = self._launch(start_id, entry["code"], stored_at, handle or {})
        while True:
            try:
                found = await self._executor.reattach(launch, handle is not None)
                break
            except OSError:
                await asyncio.sleep(0.05)
        if isinstance(found, NeverStarted):
            self._write("never", start_id)
        elif isinstance(found, Lost):
            self._write("lost", start_id, why=found.reason)
        else:
            self._write("begun", start_id, handle=dict(found.handle))
            await self._follow(start_id, found)

    async def tidy_up(self) -> None:
        """What an agent does beside its work, until nothing is left of runs that are over."""
        nobody = Nobody()
        agent = cast("AgentHandle", cast("Any", nobody))
        serving = asyncio.create_task(self._executor.serve(agent))
        while not nobody.asked:
            await asyncio.sleep(0.01)
        serving.cancel()  # it tidies in the very turn in which it is answered
        await asyncio.wait({serving})

    async def work(self) -> None:
        await asyncio.gather(*(self._slot() for _ in range(IN_FLIGHT)))

    async def _slot(self) -> None:
        start_id, start = self._stored()
        while True:
            following_id, following = self._stored()
            following.hand_over(self._clock.boottime() + 60.0, lambda: None)
            try:
                execution = await start
            except NeverRan as error:
                self._write("never", start_id, why=str(error))
            else:
                self._write("begun", start_id, handle=dict(execution.handle))
                await self._follow(start_id, execution)
            if following_id < "4" and await following.recall():
                self._write("never", following_id, why="recalled")
                following_id, following = self._stored()
            start_id, start = following_id, following

    def _stored(self) -> tuple[str, Ahead]:
        start_id = uuid.uuid4().hex
        code = int(start_id[:2], 16) % 50
        now = Instant.now(self._clock)
        self._write("stored", start_id, code=code, stored_at=asdict(now))
        start = self._executor.execute(self._launch(start_id, code, now, {}))
        assert isinstance(start, Ahead)
        return start_id, start

    async def _follow(self, start_id: str, execution: Execution) -> None:
        outcome = await execution.wait()
        facts = {"reason": outcome.reason, "code": outcome.exit_code, "why": outcome.error}
        self._write("ended", start_id, **facts, out=outcome.stdout.decode())
        await execution.forget()


def entries(base: Path) -> dict[str, dict[str, Any]]:
    """What the ledger says, one entry a start."""
    found: dict[str, dict[str, Any]] = {}
    for line in (base / "ledger").read_text().splitlines() if (base / "ledger").exists() else ():
        try:
            said = json.loads(line)
        except ValueError:  # empty, or torn: its driver was killed while it wrote
            continue
        entry = found.setdefault(said["id"], {"id": said["id"], "history": []})
        entry["history"].append(said["what"])
        if said["what"] == "stored":
            entry.update(code=said["code"], stored_at=said["stored_at"])
        elif said["what"] == "begun":
            entry["handle"] = said["handle"]
        else:
            entry["end"] = said
    return found


def unended(base: Path) -> list[dict[str, Any]]:
    return [entry for entry in entries(base).values() if "end" not in entry]


async def main(base: Path, runtime: Path, how: str) -> None:
    driver = Driver(base, runtime)
    sys.stdout.write("alive\n")
    sys.stdout.flush()
    recovering = asyncio.create_task(driver.recover())
    if how == "work":
        await driver.work()
    await recovering
    if how == "finish":
        await driver.tidy_up()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
