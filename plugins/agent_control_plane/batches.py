"""Batches of events: loaded together, applied one after another, saved together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.exc import DataError, IntegrityError

from agent_control_plane import agents, commands, outputs
from agent_control_plane import event_schemas as told
from agent_control_plane.agents import EVENTS
from agent_control_plane.db import Database, several_write
from agent_control_plane.event_schemas import Read
from agent_control_plane.events import Complete, Event, Progress, Renew, Run, Shift, Start
from agent_control_plane.ledger import save
from agent_control_plane.lifecycle import after, apply
from agent_control_plane.rows import Change, load_attempts, read_attempt, read_task
from agent_control_plane.states import Attempt, Effect, State, Task, Terms
from agent_control_plane.tables import attempts, tasks
from agent_core import log
from agent_core.api.http import Problem
from agent_core.api.wire import Code, Json, rfc3339

_LOCK = (
    select(tasks.c.id)
    .where(
        tasks.c.id.in_(
            select(attempts.c.task_id).where(
                attempts.c.id.in_(bindparam("attempts", expanding=True))
            )
        )
    )
    .order_by(tasks.c.id)
    .with_for_update()
)
_KNOWN = select(tasks.c.id).where(tasks.c.id.in_(bindparam("tasks", expanding=True)))
_log = log.get("server")
_DONE: Final[dict[str, Json]] = {"code": 0, "message": ""}


@dataclass(slots=True)
class _Pair:
    """A task and one attempt at it on their way through a batch."""

    was: Task
    held: Attempt
    task: Task
    attempt: Attempt
    task_changes: dict[str, Any]
    attempt_changes: dict[str, Any]
    moved: bool = False  # since task and attempt were built

    def settle(self) -> None:
        """Build both as they are now, for the next event; most have none."""
        if self.moved:
            changes = Effect(task=self.task_changes, attempt=self.attempt_changes)
            self.task, self.attempt = after(self.was, self.held, changes)
            self.moved = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A request with its circumstances."""

    call: told.Events
    now: float
    terms: Terms
    commanded: bool  # the answer may carry commands


async def taken(db: Database, batch: Batch) -> dict[str, Json]:
    """The whole batch in one transaction; where the database refuses it, its events one by one."""
    if len(batch.call.events) > EVENTS:
        raise Problem(Code.TOO_LARGE, f"events: at most {EVENTS} are taken at once; send fewer")
    events = told.read_events(batch.call.events)
    try:
        return await db.write(lambda connection: take(connection, batch, events))
    except Problem:
        raise
    except Exception as error:
        _log.warning("a batch of events is taken one by one", error=str(error)[:1000])
    answers = [await _alone(db, batch, event) for event in events]
    return {
        "results": [each["results"][0] for each in answers],
        "commands": [command for each in answers for command in each["commands"]],
    }


async def _alone(db: Database, batch: Batch, event: Read) -> dict[str, Json]:
    try:
        return await db.write(lambda connection: take(connection, batch, [event]))
    except Problem:
        raise
    except (DataError, IntegrityError) as error:
        code, words = Code.INVALID, f"the database cannot keep this event: {error.orig}"
    except Exception:
        _log.exception("an event failed", agent=batch.call.agent_id)
        code, words = Code.INTERNAL, "internal error; the server's log says more"
    return {"results": [{"code": int(code), "message": words[:500]}], "commands": []}


def take(connection: Connection, batch: Batch, events: Sequence[Read]) -> dict[str, Json]:
    """An answer for each event, by position; what is refused has changed nothing."""
    call, now = batch.call, batch.now
    known = agents.seen(connection, call.agent_id, call.machine_id, now)
    taking = _Taking(connection, batch)
    taking.load(events)
    results = [taking.one(event) for event in events]
    taking.save()
    said = commands.NONE
    if batch.commanded and known.commanded:
        said = commands.tell(connection, call.agent_id, now)
    return {"results": results, "commands": list(said.commands)}


class _Taking:
    def __init__(self, connection: Connection, batch: Batch) -> None:
        self._connection = connection
        self._agent_id = batch.call.agent_id
        self._stream = batch.call.stream
        self._now = batch.now
        self._terms = batch.terms
        self._pairs: dict[str, _Pair] = {}
        self._known: set[str] = set()
        self._runs: list[dict[str, Any]] = []
        self._texts: list[dict[str, Any]] = []

    def load(self, events: Sequence[Read]) -> None:
        named = {e.attempt_id: e.task_id for e in events if isinstance(e, told.OfRun)}
        if not named:
            return
        if several_write(self._connection):  # or a row joined may be older than its task
            self._connection.execute(_LOCK, {"attempts": sorted(named)}).all()
        for row in load_attempts(self._connection, sorted(named)):
            task, attempt = read_task(row), read_attempt(row)
            if attempt is not None:
                self._pairs[attempt.id] = _Pair(task, attempt, task, attempt, {}, {})
        strange = {task for attempt, task in named.items() if attempt not in self._pairs}
        if strange:
            found = self._connection.execute(_KNOWN, {"tasks": sorted(strange)}).scalars()
            self._known.update(found)

    def one(self, event: Read) -> dict[str, Json]:
        if isinstance(event, Problem):
            return {"code": int(event.code), "message": event.message}
        if isinstance(event, told.CommandEvent):
            words = event.message or ""
            commands.answered(self._connection, self._agent_id, event.id, event.code, words)
            return _DONE
        pair = self._pairs.get(event.attempt_id)
        if pair is None or pair.task.id != event.task_id:
            return self._unknown(event.task_id, known=pair is not None)
        pair.settle()
        if self._told_before(pair.attempt, event.seq):
            return _DONE
        meant = _MEANINGS[type(event)](event, self._agent_id, self._now)
        effect = apply(pair.task, pair.attempt, meant, self._now, self._terms)
        if effect.code is not Code.OK:
            return {"code": int(effect.code), "message": effect.message}
        self._note(pair, event, effect)
        if isinstance(event, told.RenewEvent):
            return {**_DONE, **self._lease(effect.attempt)}
        return _DONE

    def _told_before(self, attempt: Attempt, seq: int) -> bool:
        ours = attempt.agent_id == self._agent_id and attempt.stream == self._stream
        return ours and 0 < seq <= attempt.last_seq

    def _unknown(self, task_id: str, *, known: bool) -> dict[str, Json]:
        if known or task_id in self._known:
            words = "this attempt is not known, or is another task's"
            return {"code": int(Code.ATTEMPT_LOST), "message": words}
        return {"code": int(Code.NO_SUCH_TASK), "message": f"there is no task {task_id[:80]}"}

    def _note(self, pair: _Pair, event: Any, effect: Effect) -> None:
        if effect.run is not None:
            texts = outputs.earlier(self._connection, pair.attempt, event)
            self._runs.append({**effect.run, **texts})
        elif isinstance(event, told.CompleteEvent) and effect.attempt:
            self._texts += outputs.end(self._connection, pair.attempt, pair.task.id, event)
        pair.task_changes.update(effect.task)
        pair.attempt_changes.update(effect.attempt)
        if event.seq:
            pair.attempt_changes |= {"stream": self._stream, "last_seq": event.seq}
        pair.moved = True

    def _lease(self, renewed: Mapping[str, Any]) -> dict[str, Json]:
        return {
            "lease_sec": int(self._terms.lease_sec),
            "lease_expires_at": rfc3339(renewed["lease_expires_at"]),
            "regrant_at": rfc3339(renewed["regrant_at"]),
        }

    def save(self) -> None:
        changes: list[Change] = [
            (pair.was, pair.held, Effect(task=pair.task_changes, attempt=pair.attempt_changes))
            for pair in self._pairs.values()
            if pair.task_changes or pair.attempt_changes
        ]
        save(self._connection, *changes)
        outputs.keep_runs(self._connection, self._runs)
        outputs.keep(self._connection, self._texts)


def _start(event: told.StartEvent, agent_id: str, now: float) -> Start:
    at = event.at if event.started_at is None else event.started_at
    return Start(agent_id=agent_id, run_no=event.run_no, began_at=at, behind=True)


def _renew(event: told.RenewEvent, agent_id: str, now: float) -> Renew:
    return Renew(agent_id=agent_id)


def _progress(event: told.ProgressEvent, agent_id: str, now: float) -> Progress:
    return Progress(agent_id=agent_id, percent=event.percent, message=event.message or "")


def _shift(event: told.StateEvent, agent_id: str, now: float) -> Shift:
    return Shift(agent_id=agent_id, status=State(event.status))


def _complete(event: told.CompleteEvent, agent_id: str, now: float) -> Complete:
    return agents.completion(event, agent_id, told_at=event.at)


def _run(event: told.RunEvent, agent_id: str, now: float) -> Run:
    at, due = event.at, event.next_run_at
    if at is not None and due is not None:
        due += now - at  # by our clock
    return Run(
        agent_id=agent_id,
        run_no=event.run_no,
        next_run_at=due,
        told_at=at,
        **agents.outcome(event),
    )


_MEANINGS: Final[Mapping[type, Callable[..., Event]]] = {
    told.StartEvent: _start,
    told.RenewEvent: _renew,
    told.ProgressEvent: _progress,
    told.StateEvent: _shift,
    told.RunEvent: _run,
    told.CompleteEvent: _complete,
}
