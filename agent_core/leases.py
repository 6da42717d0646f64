"""The leases that we hold: of what was stored with the claim and what a renewal said, the newer."""

from agent_core.clock import Clock
from agent_core.models import Key, Lease, Task


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

    def renew(self, key: Key, lease: Lease) -> None:
        self._renewed[key] = lease

    def drop(self, key: Key) -> None:
        self._renewed.pop(key, None)
