"""Tasks that are submitted on this machine itself, without a server."""

import asyncio
import uuid
from dataclasses import replace

from agent_core.api.wire import Code
from agent_core.clock import Clock
from agent_core.errors import NotAccepted, RemoteGPUError
from agent_core.feed import NEVER
from agent_core.lifecycle import Status
from agent_core.models import Task
from agent_core.protocols import Store
from agent_core.worker import Worker

LONGEST_ID = 128  # characters
PRIORITIES = range(1, 11)


class Local:
    """Takes them: stored, then judged like any other."""

    def __init__(self, store: Store, worker: Worker, clock: Clock) -> None:
        self._store = store
        self._worker = worker
        self._clock = clock

    async def submit(self, task: Task) -> Task:
        """The task as it is stored; a site's refusal is its end, not an error here.

        Raises NotAccepted for what no agent could take, StoreError if it could not be kept.
        """
        task = replace(
            task,
            id=task.id or str(uuid.uuid4()),
            attempt_id="",
            source="",
            created_at=task.created_at or self._clock.wall(),
        )
        _check(task)
        if task.depends_on:
            await self._worker.dependencies.check(task)
            task = replace(task, due_at=NEVER)
            self._worker.dependencies.hold_back(task, stored=False)
        answer: asyncio.Future[Task] = asyncio.get_running_loop().create_future()
        # Beside its caller, who may give up: half a submission would wait for ever.
        self._worker.slots.in_background(self._keep(task, answer), f"submit {task.id}")
        return await answer

    async def _keep(self, task: Task, answer: "asyncio.Future[Task]") -> None:
        try:
            if not await self._store.add([task], {}):
                raise NotAccepted(f"a task {task.id} was submitted here before", Code.CONFLICT)
        except RemoteGPUError as error:
            self._worker.dependencies.drop(task.key)
            if not answer.done():
                answer.set_exception(error)
            return
        await self._worker.admit([task])
        self._worker.let_go(task.key)
        self._worker.dependencies.stored(task.key)
        if not answer.done():
            answer.set_result(task)


def _check(task: Task) -> None:
    """Raises NotAccepted for what cannot be meant."""
    if len(task.id) > LONGEST_ID or not task.id.isprintable():
        raise NotAccepted(f"id: at most {LONGEST_ID} printable characters", Code.INVALID)
    if task.priority not in PRIORITIES:
        raise NotAccepted("priority: from 1, the most urgent, to 10", Code.INVALID)
    if task.timeout <= 0:
        raise NotAccepted("timeout: more than 0 seconds", Code.INVALID)
    if (task.status, task.run_no, task.outcome) != (Status.PENDING, 0, None):
        raise NotAccepted("a task that is submitted has no past", Code.INVALID)
