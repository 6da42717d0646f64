"""The leases that we hold: of what was stored with the claim and what a renewal said, the newer."""

from agent_core.clock import Clock
from agent_core.lifecycle import Status
from agent_core.models import Key, Lease, Task
from agent_core.protocols import Held


class Leases:
    """Renewals live in memory alone: after a restart the first thing said to a server is renew."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._renewed: dict[Key, Lease] = {}

    def of(self, task: Task) -> Lease | None:
        """None for a task that nobody lent us."""
        return self._renewed.get(task.key, task.lease)

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
            lease=self.of(task),
            timeout=task.timeout,
        )

    def renew(self, key: Key, lease: Lease) -> None:
        self._renewed[key] = lease

    def drop(self, key: Key) -> None:
        self._renewed.pop(key, None)
