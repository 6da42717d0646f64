"""The leases that we hold: of what was stored with the claim and what a renewal said, the newer."""

import math
from dataclasses import replace

from agent_core.clock import Clock
from agent_core.errors import StoreError
from agent_core.lifecycle import Status
from agent_core.log import get
from agent_core.models import Key, Lease, Task
from agent_core.protocols import Held, Store

FOR_EVER = 1e9  # seconds


class Leases:
    """Renewals live in memory: after a restart the first thing said to a server is renew.

    Only those of runs that must never overlap are saved too, by the worker.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._renewed: dict[Key, Lease] = {}

    def of(self, task: Task) -> Lease | None:
        """None for a task that nobody lent us."""
        return self._renewed.get(task.key, task.lease)

    def contact_left(self, task: Task, needed: float) -> float:
        """Seconds until a run must be told to end, if it takes `needed` seconds to do so.

        Infinite for a run that goes on without contact.
        """
        lease = self.of(task)
        if lease is None or lease.stop_after is None:
            return math.inf
        return lease.stop_after - lease.until.age(self._clock) - needed

    def until(self, task: Task) -> float:
        """The boot time from which on no run may begin without a renewal."""
        lease = self.of(task)
        now = self._clock.boottime()
        return now + FOR_EVER if lease is None else now - lease.until.age(self._clock)

    def over(self, task: Task) -> bool:
        """No run may begin now."""
        lease = self.of(task)
        return lease is not None and lease.over(self._clock)

    def held(self, task: Task) -> Held:
        """What its source needs to know to keep it ours."""
        return Held(
            key=task.key,
            source=task.source,
            status=task.status,
            begun=task.run_no > 0 or task.status not in {Status.PENDING, Status.ASSIGNED},
            run_no=task.run_no,
            lease=self.of(task),
            timeout=task.timeout,
        )

    def renew(self, task: Task, lease: Lease) -> Lease:
        """What the attempt may do without contact stays as it was granted."""
        granted = self.of(task)
        if granted is not None and lease.stop_after is None:
            lease = replace(lease, stop_after=granted.stop_after)
        self._renewed[task.key] = lease
        return lease

    async def save(self, store: Store, task: Task) -> None:
        """Without it a restarted agent would think that contact was lost long ago.

        A task that moves meanwhile is left alone: the next renewal is kept.
        """
        try:
            await store.save(task, {"lease": self.of(task)})
        except StoreError as error:
            get("worker").error("a renewal cannot be saved now", task=task.id, why=str(error))

    def drop(self, key: Key) -> None:
        self._renewed.pop(key, None)
