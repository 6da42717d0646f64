"""What a waiting task needs of whoever runs it, as one text, and which agents have that.

Tasks with the same text wait in one line of the queue's index: a claim looks at the lines, not at
the tasks in them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from agent_core.api.resources import NOTHING, Free, Resources, as_json, fitting
from agent_core.api.resources import read as read_resources

MOST_BYTES: Final = 1500  # of the text in UTF-8: it stands in an index, whose entries are bounded


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What every task of one line asks for."""

    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = NOTHING
    executor: str = ""  # "" = the machine's first


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What the agent behind a claim is and has."""

    machine_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    executors: tuple[str, ...] = ()
    limit: int = 0  # tasks that it takes
    free: Free | None = None  # None: it does not tell, so it gets what asks for no resources
    whole: Free | None = None  # what it has in all, as far as it told
    urgent_at_most: int | None = None  # with no free slot: the least urgent that makes room


def written(labels: Mapping[str, str], resources: Resources, executor: str) -> str:
    """The text; "" where nothing is needed. The same needs have the same text."""
    asked = {
        "executor": executor,
        "labels": dict(labels),
        "resources": as_json(replace(resources, gpu=resources.gpu.lower())),
    }
    found = {name: value for name, value in asked.items() if value}
    if not found:
        return ""
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=4096)
def read(text: str) -> Needs:
    """What a text says."""
    if not text:
        return Needs()
    found = json.loads(text)
    return Needs(
        labels=found.get("labels", {}),
        resources=read_resources(found.get("resources", {})),
        executor=found.get("executor", ""),
    )


def may_run(needs: Needs, offer: Offer) -> bool:
    """Whether the agent is of the kind that is needed, however busy it is."""
    if needs.executor and needs.executor not in offer.executors:
        return False
    return all(offer.labels.get(name) == value for name, value in needs.labels.items())


def fits(needs: Needs, offer: Offer) -> bool:
    """Whether the agent could be given a task of this line now.

    What asks for resources must find a slot too: granted ahead of one, it would hold resources
    that another machine has free. What asks for none may be had ready.
    """
    if not may_run(needs, offer):
        return False
    if not needs.resources:
        return True
    free = offer.free
    return free is not None and free.slots > 0 and fitting(needs.resources, free) is not None


def takes(offer: Offer, ready_for: str, needs: str, priority: int) -> bool:
    """Whether a task that is ready, alone, would be granted to this offer. Pure, for the waker."""
    if ready_for not in ("", offer.machine_id):
        return False
    wanted = read(needs)
    if offer.limit > 0 and fits(wanted, offer):
        return True
    return is_urgent(offer, priority) and makes_room(wanted, offer)


def is_urgent(offer: Offer, priority: int) -> bool:
    """Whether a task is so urgent that the full agent would end another for it."""
    return offer.urgent_at_most is not None and priority <= offer.urgent_at_most


def makes_room(needs: Needs, offer: Offer) -> bool:
    """Whether a full agent could run it once others have ended."""
    if not may_run(needs, offer):
        return False
    wanted = needs.resources
    if not wanted:
        return True
    return offer.whole is not None and fitting(wanted, offer.whole) is not None
