"""The only caller of plugins' hooks: awaits, bounds in time, names the one that failed."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, NoReturn, cast

import pluggy

from agent_core.errors import NeverRan, PluginError, reason_of
from agent_core.execution import Execution
from agent_core.hookspecs import Hooks
from agent_core.inventory import Inventory
from agent_core.log import get
from agent_core.models import (
    Claim,
    Demand,
    Event,
    Launch,
    Lost,
    NeverStarted,
    Receipt,
    Task,
    Verdict,
)
from agent_core.prompt import begin
from agent_core.protocols import AgentHandle, Scheduler, Store

PLAIN = frozenset({str, int, float, bool})  # JSON, without looking into it
Implementation = tuple[str, Callable[..., Any]]


class Start(NamedTuple):
    """A start that an executor has taken and that nothing has begun of."""

    plugin: str
    answer: Awaitable[Execution]

    def drop(self) -> None:
        """It will not be awaited, or was: no coroutine is left to complain."""
        if inspect.iscoroutine(self.answer):
            self.answer.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Seconds for an answer. Claim, report and serve bound themselves: they know their wait."""

    validate: float = 10.0
    execute: float = 60.0
    reattach: float = 60.0
    inventory: float = 10.0


class Caller:
    """Asks the plugins in the order the site gave them, each hook by its own rule.

    The rules, and what an error means, stand in `hookspecs`.
    """

    def __init__(self, manager: pluggy.PluginManager, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._log = get("hooks")
        specified = [name for name in vars(Hooks) if not name.startswith("_")]
        self._asked = {name: self._implementations(manager, name) for name in specified}
        self._finding = {name for name, _ in self._asked["reattach"]}
        if not self._asked["validate"]:
            raise PluginError(
                "no enabled plugin validates tasks, so nothing could ever run; "
                "take command_policy out of [plugins] disable"
            )
        if not self._asked["execute"]:
            raise PluginError(
                "no enabled plugin executes tasks; take subprocess_executor out of "
                "[plugins] disable, or enable another executor"
            )
        self._one("store")
        self._one("schedule")

    @staticmethod
    def _implementations(manager: pluggy.PluginManager, hook: str) -> list[Implementation]:
        """Name and bound method of each plugin that has the hook; pluggy's list is last first."""
        caller = getattr(manager.hook, hook)
        return [
            (impl.plugin_name, _accepting(impl.function, impl.argnames, caller.spec.argnames))
            for impl in reversed(caller.get_hookimpls())
        ]

    def _one(self, hook: str) -> Implementation:
        found = self._asked[hook]
        if len(found) == 1:
            return found[0]
        names = ", ".join(name for name, _ in found) or "none"
        raise PluginError(
            f"exactly one plugin must give the {hook} hook, but these do: {names}; "
            "change [plugins] enable and disable"
        )

    def _of(self, hook: str, plugin: str) -> Callable[..., Any]:
        for name, function in self._asked[hook]:
            if name == plugin:
                return function
        raise PluginError(
            f"the plugin {plugin} is not enabled here or has no {hook} hook; "
            f"enable it again so that its tasks come to their end"
        )

    async def store(self) -> Store:
        plugin, function = self._one("store")
        store = await function()
        if store is None:
            _broken(plugin, "store", "a Store", store)
        return cast("Store", store)

    def schedule(self) -> Scheduler:
        plugin, function = self._one("schedule")
        scheduler = function()
        if scheduler is None:
            _broken(plugin, "schedule", "a Scheduler", scheduler)
        return cast("Scheduler", scheduler)

    @property
    def sources(self) -> list[str]:
        """The plugins that bring work."""
        return [name for name, _ in self._asked["claim"]]

    @property
    def executors(self) -> list[str]:
        """The plugins that run tasks, in the order in which they are asked."""
        return [name for name, _ in self._asked["execute"]]

    async def claim(self, plugin: str, demand: Demand) -> Claim:
        claim = await self._of("claim", plugin)(demand=demand)
        if not isinstance(claim, Claim):
            _broken(plugin, "claim", "a Claim", claim)
        return claim

    async def validate(self, task: Task, launch: Launch) -> Verdict:
        """The first denial, else the consent that says what to run, or the first one.

        Silence and errors are denials.
        """
        consent: Verdict | None = None
        for plugin, function in self._asked["validate"]:
            limit: asyncio.Timeout | None = None
            try:
                at_once, verdict = begin(function(task=task, launch=launch))
                if not at_once:
                    async with asyncio.timeout(self._limits.validate) as limit:
                        verdict = await verdict
            except Exception as error:
                if limit is not None and limit.expired():
                    why = f"the validator {plugin} did not answer in {self._limits.validate:g} s"
                    return Verdict.deny(why)
                self._log.exception("a validator failed", plugin=plugin)
                return Verdict.deny(f"the validator {plugin} failed: {reason_of(error)}")
            if not isinstance(verdict, Verdict):
                return Verdict.deny(f"the validator {plugin} gave no verdict")
            if not verdict.allowed:
                return verdict
            if consent is not None and consent.argv and verdict.argv:
                if (consent.argv, consent.program) != (verdict.argv, verdict.program):
                    return Verdict.deny(f"the validator {plugin} would run something else")
            elif consent is None or verdict.argv:
                consent = verdict
        return consent or Verdict.deny("no validator is enabled")

    def lacks(self, executor: str) -> str:
        """In words, that a task asks for an executor that is not enabled. "" if it does not."""
        if not executor or executor in self.executors:
            return ""
        names = ", ".join(self.executors)
        return f"asks for the executor {executor}; those enabled on this machine are: {names}"

    def choose(self, launch: Launch) -> Start:
        """The first executor that takes it; nothing begins before the start is awaited.

        Only the one that the launch names is asked, if it names one. So the executor's name can be
        stored with the start. Raises NeverRan if none takes it.
        """
        if lacks := self.lacks(launch.executor):
            raise NeverRan(lacks)
        for plugin, function in self._asked["execute"]:
            if launch.executor and plugin != launch.executor:
                continue
            try:
                answer = function(launch=launch)
                begun = isinstance(answer, asyncio.Future)
                if answer is not None and (begun or not inspect.isawaitable(answer)):
                    _broken(plugin, "execute", "a coroutine or None", answer)
            except NeverRan:
                raise
            except Exception as error:
                self._log.exception("an executor failed to decide", plugin=plugin)
                raise NeverRan(f"the executor {plugin} failed: {reason_of(error)}") from error
            if answer is not None:
                return Start(plugin, cast("Awaitable[Execution]", answer))
        if launch.executor:
            raise NeverRan(f"the executor {launch.executor}, which it asks for, does not take it")
        raise NeverRan("no enabled executor takes this task")

    async def execute(self, start: Start) -> Execution:
        """Begin it. NeverRan if it could not; any other error: `reattach` must tell what became."""
        at_once, execution = begin(_awaited(start.answer))  # one that was handed over has begun
        if not at_once:
            async with asyncio.timeout(self._limits.execute):
                execution = await execution
        if not isinstance(execution, Execution):
            _broken(start.plugin, "execute", "an Execution", execution)
        _check_handle(start.plugin, execution)
        return execution

    def finds_again(self, plugin: str) -> bool:
        """Whether this executor can tell, after a restart, what became of a start."""
        return plugin in self._finding

    async def reattach(
        self, plugin: str, launch: Launch, *, running: bool
    ) -> Execution | NeverStarted | Lost:
        """Ask the executor that took the start. One without this hook has lost it."""
        took = {name for name, _ in self._asked["execute"]}
        if plugin in took and plugin not in self._finding:
            return Lost(reason=f"the executor {plugin} cannot find runs again")
        function = self._of("reattach", plugin)
        async with asyncio.timeout(self._limits.reattach):
            answer = await function(launch=launch, running=running)
        if not isinstance(answer, Execution | NeverStarted | Lost):
            _broken(plugin, "reattach", "an Execution, NeverStarted or Lost", answer)
        if isinstance(answer, Execution):
            _check_handle(plugin, answer)
        return answer

    async def report(self, plugin: str, events: Sequence[Event]) -> Sequence[Receipt]:
        receipts = await self._of("report", plugin)(events=events)
        told = [getattr(each, "seq", None) for each in receipts or ()]
        if told != [event.seq for event in events]:
            _broken(plugin, "report", "one receipt an event, by position", receipts)
        return cast("Sequence[Receipt]", receipts)

    def serving(self, agent: AgentHandle) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What each plugin that lives beside the work wants to be awaited."""
        return [(name, function(agent=agent)) for name, function in self._asked["serve"]]

    async def inventory(self) -> Inventory:
        """Everybody's values; of two that tell the same thing, the first asked counts."""
        told: dict[str, Any] = {}
        gpus: list[Any] = []
        for plugin, function in self._asked["inventory"]:
            try:
                async with asyncio.timeout(self._limits.inventory):
                    part = await function()
                if not isinstance(part, Inventory):
                    _broken(plugin, "inventory", "an Inventory", part)
            except Exception:
                self._log.exception("an inventory failed; its values are missing", plugin=plugin)
                continue
            gpus.extend(part.gpus)
            for item in fields(part):
                if item.name != "gpus" and told.get(item.name) is None:
                    told[item.name] = getattr(part, item.name)
        return Inventory(**told, gpus=tuple(gpus))


async def _awaited(answer: Awaitable[Execution]) -> Execution:
    return await answer


def _accepting(
    function: Callable[..., Any], names: Sequence[str], specified: Sequence[str]
) -> Callable[..., Any]:
    """pluggy lets an implementation leave out arguments that it does not use; so do we."""
    if set(names) == set(specified):
        return function

    def call(**given: Any) -> Any:
        return function(*(given[name] for name in names))

    return call


def _check_handle(plugin: str, execution: Execution) -> None:
    """It is stored with the run, so it must be there and be JSON."""
    try:
        handle = dict(execution.handle)
        if not PLAIN.issuperset(map(type, (*handle, *handle.values()))):
            json.dumps(handle)
    except (AttributeError, TypeError, ValueError) as error:
        raise PluginError(
            f"the plugin {plugin} broke its contract: an Execution needs a handle that is a "
            f"mapping and JSON ({error})"
        ) from error


def _broken(plugin: str, hook: str, wanted: str, got: object) -> NoReturn:
    if inspect.iscoroutine(got):
        got.close()
    raise PluginError(
        f"the plugin {plugin} broke its contract: {hook} must answer with {wanted}, "
        f"not {type(got).__name__}"
    )
