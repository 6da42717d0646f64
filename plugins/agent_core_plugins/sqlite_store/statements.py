"""The SQL of the store: built with SQLAlchemy Core from the tables, each compiled to text once."""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    Integer,
    Select,
    Table,
    Update,
    asc,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import sqlite

from agent_core import Status
from agent_core_plugins.sqlite_store.tables import (
    WAITS,
    DeadLetterRow,
    FactRow,
    OutboxRow,
    OutcomeColumns,
    RunRow,
    StreamRow,
    TaskRow,
)
from agent_core_plugins.sqlite_store.tables import Table as Base

_DIALECT = sqlite.dialect()
_TABLES: Mapping[str, Table] = Base.metadata.tables
TASKS = _TABLES[str(TaskRow.__tablename__)]
RUNS = _TABLES[str(RunRow.__tablename__)]
OUTBOX = _TABLES[str(OutboxRow.__tablename__)]
DEAD_LETTERS = _TABLES[str(DeadLetterRow.__tablename__)]
FACTS = _TABLES[str(FactRow.__tablename__)]
STREAM = _TABLES[str(StreamRow.__tablename__)]

OUTPUT = ("stdout", "stderr")
OUTCOME = tuple(OutcomeColumns.model_fields)
TASK = tuple(column.name for column in TASKS.columns)  # a task's row, output last
EVENT = tuple(column.name for column in OUTBOX.columns)


class Prepared(NamedTuple):
    """A statement as text, and the names of its parameters in the order of the question marks."""

    text: str
    names: tuple[str, ...]

    def values(self, given: Mapping[str, object]) -> tuple[object, ...]:
        return tuple([given[name] for name in self.names])


def prepared(statement: ClauseElement) -> Prepared:
    compiled: Any = statement.compile(dialect=_DIALECT)
    fixed = {name: value for name, value in compiled.params.items() if value is not None}
    assert not fixed, f"a statement that is used again holds the value of {fixed}"
    return Prepared(str(compiled), tuple(compiled.positiontup))


def along(index: str, statement: ClauseElement) -> Prepared:
    """One that walks along this index: the planner would take the one by status and sort."""
    text, names = prepared(statement)
    before, table, after = text.partition(f"FROM {TASKS.name}")
    return Prepared(f"{before}{table} INDEXED BY {index}{after}", names)


def _of_task(table: Table) -> ColumnElement[bool]:
    return (table.c.task_id == bindparam("key_task")) & (
        table.c.attempt_id == bindparam("key_attempt")
    )


_NONE: Any = literal_column("0")  # without it the dialect adds a parameter for an offset of 0


def _limit() -> Any:
    return bindparam("limit", type_=Integer)


# --- writes

ADD_TASK = prepared(
    sqlite.insert(TASKS).on_conflict_do_nothing(index_elements=["task_id", "attempt_id"])
)
ADD_EVENT = prepared(
    insert(OUTBOX).values({name: bindparam(name) for name in EVENT if name != "seq"})
)
ADD_RUN = prepared(insert(RUNS))


def _set_fact() -> ClauseElement:
    new = sqlite.insert(FACTS)
    return new.on_conflict_do_update(index_elements=["name"], set_={"value": new.excluded["value"]})


SET_FACT = prepared(_set_fact())


def move(columns: tuple[str, ...]) -> Prepared:
    """UPDATE of these columns, in this order, if the task still has this status and start id."""
    statement: Update = (
        update(TASKS)
        .where(_of_task(TASKS))
        .where(TASKS.c.status == bindparam("old_status"))
        .where(TASKS.c.start_id == bindparam("old_start_id"))
        .ordered_values(*((TASKS.c[name], bindparam(name)) for name in columns))
    )
    return prepared(statement)


SETTLE_RANGE = prepared(
    delete(OUTBOX).where(OUTBOX.c.seq.between(bindparam("first"), bindparam("last")))
)


def _bury() -> ClauseElement:
    names = [name for name in EVENT if name != "seq"]
    source = select(
        *(OUTBOX.c[name] for name in names),
        OUTBOX.c.seq,
        bindparam("code", type_=Integer),
        bindparam("message"),
    ).where(OUTBOX.c.seq == bindparam("of_seq"))
    return insert(DEAD_LETTERS).from_select([*names, "seq", "code", "message"], source)


BURY = prepared(_bury())  # nothing where the event is gone: a repeat changes nothing

# --- reads


def _without_output() -> list[ColumnElement[Any]]:
    return [column for column in TASKS.columns if column.name not in OUTPUT]


GET_TASK = prepared(select(TASKS).where(_of_task(TASKS)))


def _task_outcome(names: Collection[str]) -> Prepared:
    return prepared(select(*(TASKS.c[name] for name in names)).where(_of_task(TASKS)))


def _run_outcome(names: Collection[str]) -> Prepared:
    columns = select(*(RUNS.c[name] for name in names))
    return prepared(columns.where(_of_task(RUNS)).where(RUNS.c.run_no == bindparam("run_no")))


TASK_OUTCOME, RUN_OUTCOME = _task_outcome(OUTCOME), _run_outcome(OUTCOME)
TASK_END, RUN_END = _task_outcome(OUTCOME[:-2]), _run_outcome(OUTCOME[:-2])  # without output
GET_RUNS = prepared(
    select(RUNS.c.run_no, RUNS.c.started_at, *(RUNS.c[name] for name in OUTCOME))
    .where(_of_task(RUNS))
    .order_by(RUNS.c.run_no)
)
GET_LISTED = prepared(select(*_without_output()).where(_of_task(TASKS)))
DUE = along(  # keys alone, which the index holds: most of them are often to be skipped
    "tasks_by_turn",
    select(TASKS.c.task_id, TASKS.c.attempt_id)
    .where(WAITS, TASKS.c.due_at <= bindparam("now"))
    .order_by(TASKS.c.priority, TASKS.c.created_at, TASKS.c.task_id, TASKS.c.attempt_id),
)
NEXT_DUE = along(
    "tasks_by_due_time",
    select(func.min(TASKS.c.due_at)).where(WAITS, TASKS.c.due_at > bindparam("now")),
)
GET_OUTBOX = prepared(
    select(*(OUTBOX.c[name] for name in EVENT))
    .where(OUTBOX.c.seq > bindparam("after", type_=Integer))
    .order_by(OUTBOX.c.seq)
)
GET_DEAD_LETTERS = prepared(
    select(*(DEAD_LETTERS.c[name] for name in EVENT), DEAD_LETTERS.c.code, DEAD_LETTERS.c.message)
    .order_by(DEAD_LETTERS.c.seq)
    .limit(_limit())
    .offset(_NONE)
)
GET_FACT = prepared(select(FACTS.c.value).where(FACTS.c.name == bindparam("name")))
GET_STREAM = prepared(select(STREAM.c.id))


PAGE_START = ("after_created", "after_task", "after_attempt")
CREATED_AT = prepared(select(TASKS.c.created_at).where(_of_task(TASKS)))


@cache  # the sets of states that somebody lists
def listed(statuses: frozenset[Status], paged: bool) -> Prepared:
    """Tasks in these states, oldest first, after a given one if `paged`.

    One walk along the index a state, merged: a single IN would sort every task that matches.
    """
    order = (TASKS.c.created_at, TASKS.c.task_id, TASKS.c.attempt_id)
    keys: list[Select[Any]] = []
    for status in sorted(statuses):
        # The states are ours, so they may stand in the text.
        one = select(*order).where(TASKS.c.status == literal_column(f"'{status.value}'"))
        if paged:
            one = one.where(tuple_(*order) > tuple_(*_page_start(order)))
        keys.append(select(one.order_by(*order).limit(_limit()).offset(_NONE).subquery()))
    found = union_all(*keys).subquery()
    wanted = [found.c.created_at, found.c.task_id, found.c.attempt_id]
    statement = (
        select(*_without_output())
        .join_from(
            found,
            TASKS,
            (TASKS.c.task_id == found.c.task_id) & (TASKS.c.attempt_id == found.c.attempt_id),
        )
        .order_by(*(asc(column) for column in wanted))
        .limit(_limit())
        .offset(_NONE)
    )
    return prepared(statement)


def _page_start(order: Collection[Any]) -> list[Any]:
    return [
        bindparam(name, type_=column.type) for name, column in zip(PAGE_START, order, strict=True)
    ]
