"""`submit --array`: one task for each index, and what is said where that ends half-way."""

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from agent_core.api.wire import Code, Json
from agent_core.cli.exits import CommandFailed, exit_code
from agent_core.cli.many import in_order
from agent_core.cli.output import note
from agent_core.cli.text import words
from agent_core.errors import Refused, Unreachable

if TYPE_CHECKING:
    from agent_core.api.client import Client

INDEX: Final = "REMOTEGPU_ARRAY_INDEX"  # in the environment of each task
MOST: Final = 10_000  # tasks of one array
_PART: Final = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)

Fields = Mapping[str, Json]


class Indexes(click.ParamType[tuple[int, ...]]):
    """`0-9`, `0-9:2`, `1,3,5`, or several of these behind commas."""

    name = "indexes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found: dict[int, None] = {}
        for part in str(value).split(","):
            match = _PART.fullmatch(part.strip())
            if match is None:
                self.fail(f"{value!r}: write 0-9, 0-9:2 or 1,3,5", param, ctx)
            begin, end, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            if end < begin or step == 0:
                self.fail(f"{part.strip()!r} names no index", param, ctx)
            indexes = range(begin, end + 1, step)
            if len(found) + len(indexes) > MOST:
                self.fail(f"more than {MOST} tasks; submit several arrays", param, ctx)
            found |= dict.fromkeys(indexes)
        return tuple(found)


def member(fields: Fields, index: int) -> dict[str, Json]:
    """The task of one index."""
    env = {**fields.get("env", {}), INDEX: str(index)}
    return {**fields, "env": env, "name": f"{fields.get('name') or 'array'}-{index}"}


def key_of(base: str, index: int) -> str:
    """The idempotency key of one index: nobody else's, whatever keys people choose."""
    return hashlib.sha256(f"{base}\narray\n{index}".encode("utf-8", "replace")).hexdigest()


def submit_all(
    client: "Client",
    fields: Fields,
    indexes: Sequence[int],
    *,
    key: str | None,
    took: Callable[[int, Mapping[str, Json]], None],
    as_json: bool,
) -> list[str]:
    """The new tasks' ids; `took` hears of each. What fails half-way says how to go on."""
    base = uuid.uuid4().hex if key is None else key
    ids: list[str] = []
    try:
        for index, task in zip(indexes, _submitted(client, fields, indexes, base), strict=True):
            ids.append(task["id"])
            took(index, task)
    except (Refused, Unreachable) as error:
        if not ids and isinstance(error, Refused) and error.business_code != Code.INTERNAL:
            raise  # none of them will do
        raise CommandFailed(
            f"{error}; {_half_way(len(ids), len(indexes), base)}", exit_code(error), error
        ) from error
    except KeyboardInterrupt:
        note(f"stopped: {_half_way(len(ids), len(indexes), base)}", as_json=as_json)
        raise
    return ids


def _submitted(
    client: "Client", fields: Fields, indexes: Sequence[int], base: str
) -> Iterator[Mapping[str, Json]]:
    def submit(index: int) -> Mapping[str, Json]:
        return client.submit(member(fields, index), key=key_of(base, index))

    yield submit(indexes[0])  # alone: what is wrong with one is wrong with all
    yield from in_order(indexes[1:], submit)


def _half_way(done: int, wanted: int, base: str) -> str:
    return (
        f"{done} of {wanted} tasks are known to be submitted; the same command with "
        f"--idempotency-key {words(base)} goes on and submits none twice"
    )
