"""Which waiting tasks a claim is given: the most urgent of each line that fits, until all is used.

A line is the tasks that are ready for the same machine and need the same. However many wait in it,
a claim looks at its head; where nothing of it fits, it is passed over as a whole.
"""

import heapq
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, bindparam, literal_column, select

from agent_control_plane import needs
from agent_control_plane.needs import Offer
from agent_control_plane.prepared import Query, Row
from agent_control_plane.rows import columns_with
from agent_control_plane.states import Task
from agent_control_plane.tables import tasks
from agent_control_plane.views import DESCRIPTION
from agent_core.api.http import Problem
from agent_core.api.resources import Free, fitting, without
from agent_core.api.wire import Code

MOST_LINES: Final = 1000  # for one machine, and as many for any; submit keeps to it

# PostgreSQL plans for a tenth of the table where the number is a parameter.
_ONE: Final[ColumnElement[Any]] = literal_column("1")

Key = tuple[int, float, int]  # priority, created_at, seq: the smallest is the most urgent

URGENCY: Final = (tasks.c.priority, tasks.c.created_at, tasks.c.seq)
_SENT: Final = (*DESCRIPTION, "parent_id", "created_at", "assigned_at", "assigned_agent_id", "seq")
WIRE: Final = [tasks.c[name] for name in _SENT if name not in Task._fields]


class Line(NamedTuple):
    """Tasks that wait for the same, with the most urgent of them."""

    head: Key
    ready_for: str
    needs: str


def _lines() -> Select[Any]:
    """Each different text of needs once, by as many steps through the index as there are."""
    here = tasks.c.ready_for == bindparam("here")
    first = select(tasks.c.needs).where(here).order_by(tasks.c.needs).limit(_ONE).scalar_subquery()
    walk = select(first.label("needs")).cte("line", recursive=True)
    after = (
        select(tasks.c.needs)
        .where(here & (tasks.c.needs > walk.c.needs))
        .order_by(tasks.c.needs)
        .limit(_ONE)
        .scalar_subquery()
    )
    walk = walk.union_all(select(after).where(walk.c.needs.is_not(None)))
    in_line = here & (tasks.c.needs == walk.c.needs)
    # Not one lookup with a join: without statistics PostgreSQL would walk through the table for it.
    head = [
        select(column).where(in_line).order_by(*URGENCY).limit(_ONE).scalar_subquery()
        for column in URGENCY
    ]
    return (
        select(*head, walk.c.needs)
        .where(walk.c.needs.is_not(None))
        .limit(literal_column(str(MOST_LINES)))
    )


_LINES = _lines()
_find_lines = Query(_LINES)


def _of_line(what: Sequence[Any]) -> Select[Any]:
    return (
        select(*what)
        .where(
            (tasks.c.ready_for == bindparam("ready_for")) & (tasks.c.needs == bindparam("needs"))
        )
        .order_by(*URGENCY)
        .limit(bindparam("most"))
    )


_KEYS = _of_line(URGENCY)
_TAKE = (
    columns_with(*WIRE)
    .where((tasks.c.ready_for == bindparam("ready_for")) & (tasks.c.needs == bindparam("needs")))
    .order_by(*URGENCY)
    .limit(bindparam("most"))
    .with_for_update(of=tasks, skip_locked=True)
)
_take_rows = Query(_TAKE)
_SENT_URGENCY: Final = itemgetter(*(_TAKE.selected_columns.keys().index(c.name) for c in URGENCY))


def lines(connection: Connection, ready_for: str) -> list[Line]:
    """What waits for this machine alone; "" = for any."""
    rows = _find_lines.rows(connection, {"here": ready_for})
    return [Line((row[0], row[1], row[2]), ready_for, row[3]) for row in rows]


def admit(connection: Connection, ready_for: str, text: str) -> None:
    """Raises Problem where a claim would have too many lines to look at, if these needs were one.

    What waits for something else is in no line yet, so there may be somewhat more in the end.
    """
    if not text:
        return
    where = {"ready_for": ready_for, "needs": text, "most": 1}
    if connection.execute(_KEYS, where).first() is not None:
        return
    if len(lines(connection, ready_for)) >= MOST_LINES:
        raise Problem(
            Code.FULL,
            f"{MOST_LINES} different combinations of labels, resources and executor wait already; "
            "let tasks that need nearly the same ask for the same, or try again later",
        )


def chosen(connection: Connection, offer: Offer, most: int) -> list[Row]:
    """The rows to grant, locked, the most urgent first; at most `most`."""
    waiting = lines(connection, "") + lines(connection, offer.machine_id)
    # A full agent may have room for more that asks for nothing, to have it ready; what asks for
    # resources and is urgent begins there because something else ends.
    urgent = [
        line
        for line in waiting
        if needs.is_urgent(offer, line.head[0])
        and (wanted := needs.read(line.needs))
        and (offer.limit <= 0 or wanted.resources)
        and needs.makes_room(wanted, offer)
    ]
    counts = {min(urgent): 1} if urgent and most > 0 else {}
    if offer.limit > 0:
        fit = [line for line in waiting if needs.fits(needs.read(line.needs), offer)]
        counts |= _plan(connection, fit, offer.free, most - len(counts))
    rows = [row for line, count in counts.items() for row in _take(connection, line, count)]
    if len(counts) > 1:
        rows.sort(key=_SENT_URGENCY)
    return rows


def _take(connection: Connection, line: Line, count: int) -> Sequence[Row]:
    """As many of a line, passing over what another server grants at this moment."""
    where = {"ready_for": line.ready_for, "needs": line.needs, "most": count}
    return _take_rows.rows(connection, where)


def _plan(
    connection: Connection, fit: Sequence[Line], free: Free | None, most: int
) -> dict[Line, int]:
    """How many of each line, by urgency, so that together they fit what is free."""
    room = _Room(free)
    counts: dict[Line, int] = {}
    if len(fit) == 1:
        line = fit[0]
        if not needs.read(line.needs).resources:
            return {line: most} if most > 0 else {}
        count = next((n for n in range(most) if not room.takes(line.needs)), most)
        return {line: count} if count else {}
    heap: list[tuple[Key, Line, Iterator[Key] | None]] = [(line.head, line, None) for line in fit]
    heapq.heapify(heap)
    while heap and most > 0:
        _, line, rest = heap[0]
        if not room.takes(line.needs):
            heapq.heappop(heap)  # what is free only becomes less
            continue
        counts[line] = counts.get(line, 0) + 1
        most -= 1
        if rest is None:
            rest = iter(_keys(connection, line, most + 1)[1:])
        if (key := next(rest, None)) is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (key, line, rest))
    return counts


def _keys(connection: Connection, line: Line, most: int) -> list[Key]:
    where = {"ready_for": line.ready_for, "needs": line.needs, "most": most}
    return [(row[0], row[1], row[2]) for row in connection.execute(_KEYS, where)]


class _Room:
    """What is free, as it becomes less."""

    def __init__(self, free: Free | None) -> None:
        self._free = free
        self._slots = 0 if free is None else free.slots

    def takes(self, text: str) -> bool:
        """Whether one more fits, by the rule of needs.fits; then it is taken."""
        wanted = needs.read(text).resources
        if wanted and (self._free is None or self._slots <= 0):
            return False
        given = fitting(wanted, self._free) if wanted and self._free is not None else ()
        if given is None:
            return False
        if self._free is not None:
            self._free = without(self._free, wanted, given)
        self._slots -= 1
        return True
