"""The server's words to this agent: each carried out once, and answered until that was heard."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_core import to_json

from agent_core import FINAL, AgentHandle, Clock, Code, Json, Key, StoreError, Unreachable, wire
from agent_core_plugins.server_client.contact import Contact
from agent_core_plugins.server_client.courier import Courier
from agent_core_plugins.server_client.logs import Logs

REMEMBERED = 1000  # commands; an older one that came again would be carried out again
AT_ONCE = 100  # commands that wait here; the server tells the others again
REASON_LIMIT = 1000  # characters


class Command(NamedTuple):
    id: str
    action: str
    key: Key
    reason: str


class Said(NamedTuple):
    """What became of a command."""

    code: int
    message: str = ""


class Commands:
    """Hears, carries out, answers."""

    def __init__(
        self,
        contact: Contact,
        courier: Courier,
        logs: Logs,
        *,
        source: str,
        clock: Clock,
        log: Any,
    ) -> None:
        self._contact = contact
        self._courier = courier
        self._logs = logs
        self._source = source
        self._clock = clock
        self._log = log
        self._new: dict[str, Command] = {}
        self._said: OrderedDict[str, Said] = OrderedDict()
        self._unheard: dict[str, Said] = {}  # answers that the server is to be told
        self._wake = asyncio.Event()

    def hear(self, given: Json) -> bool:
        """Note what an answer of the server carried. True if there was something new."""
        if not self._contact.speaks(wire.Word.COMMANDS) or not isinstance(given, list):
            return False
        new = False
        for each in given[:AT_ONCE]:
            command = _read(each)
            if command is None:
                self._log.warning("the server sent a command without a usable id")
            elif command.id in self._said:  # it has not heard the answer yet
                self._unheard[command.id] = self._said[command.id]
            elif command.id not in self._new and len(self._new) < AT_ONCE:
                self._new[command.id] = command
                new = True
        if new or self._unheard:
            self._wake.set()
        return new

    async def keep(self, agent: AgentHandle) -> None:
        """Carry out what is heard, for as long as the agent lives."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for command in list(self._new.values()):
                said = await self._carry_out(agent, command)
                del self._new[command.id]
                if said is not None:
                    self._remember(command.id, said)
            await self._answer()

    async def _carry_out(self, agent: AgentHandle, command: Command) -> Said | None:
        """None: not now; the server says it again."""
        match command.action:
            case wire.Action.CANCEL:
                return await self._cancel(agent, command)
            case wire.Action.WATCH:
                runs = self._logs.watch(agent, command.key)
                return Said(Code.OK, "" if runs else "it does not run now")
        return Said(Code.NO_ROUTE, f"this agent does not {command.action}")

    async def _cancel(self, agent: AgentHandle, command: Command) -> Said | None:
        key = command.key
        words = "cancelled by a user" + (f": {command.reason}" if command.reason else "")
        self._log.info("ending a task", task=key.task_id, reason=words)
        try:
            if await agent.cancel(key, code=Code.TASK_FINAL, reason=words):
                return Said(Code.OK)
            task = await agent.get(key)
        except StoreError as error:  # no room to note it now
            self._log.error("a cancel cannot be saved now", task=key.task_id, reason=str(error))
            return None
        if task is not None:
            return Said(Code.OK, "it had ended") if task.status in FINAL else None
        if any(held.key.task_id == key.task_id for held in agent.held(self._source)):
            return Said(Code.ATTEMPT_LOST, "this agent holds another attempt at the task")
        return Said(Code.NO_SUCH_TASK, "this agent holds no such task")

    def _remember(self, command_id: str, said: Said) -> None:
        self._said[command_id] = self._unheard[command_id] = said
        while len(self._said) > REMEMBERED:
            self._said.popitem(last=False)

    async def _answer(self) -> None:
        """Without batches there is no way to: that server sees what came of it."""
        answers, self._unheard = self._unheard, {}
        if not answers or not self._contact.speaks(wire.Word.EVENTS):
            return
        at = wire.rfc3339(self._clock.wall())
        items = [
            to_json({"seq": 0, "kind": "command", "id": name, "at": at, **said._asdict()})
            for name, said in answers.items()
        ]
        try:
            await self._courier.ride(items)
        except Unreachable:
            return  # told again with the command


def _read(each: Json) -> Command | None:
    if not isinstance(each, Mapping):
        return None
    texts = [each.get(name) for name in ("id", "action", "task_id", "attempt_id", "reason")]
    if not isinstance(texts[0], str) or not 0 < len(texts[0]) <= 255:
        return None
    name, action, task_id, attempt_id, reason = (
        wire.plain_text(text.encode("utf-8", "replace")) if isinstance(text, str) else ""
        for text in texts
    )
    return Command(name, action[:50], Key(task_id, attempt_id), reason[:REASON_LIMIT])
