"""Each hook by its own rule: who is asked, and what an error or silence means."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from agent_core.api.wire import Answer, Json
from agent_core.errors import NeverRan, PluginError, Unreachable, reason_of
from agent_core.execution import Execution
from agent_core.hooks import Caller, Limits
from agent_core.hookspecs import hookimpl
from agent_core.inventory import Gpu, Inventory
from agent_core.lifecycle import EventKind
from agent_core.models import (
    Claim,
    Demand,
    Event,
    Key,
    Launch,
    Lost,
    NeverStarted,
    Outcome,
    Receipt,
    Verdict,
)
from agent_core.testing.executors import HandExecutor, HandRun
from tests.agent_core.core import (
    Allow,
    GivenScheduler,
    GivenStore,
    Judge,
    manager_of,
    task,
    within,
)

LAUNCH = Launch(
    start_id="s1", key=Key("t1", "a1"), run_no=1, argv=("true",), text="true", env={}, cwd="/",
    scratch="/s", progress="/p",
)  # fmt: skip


class Says:
    """A plugin whose one hook gives, or raises, what a test says."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    def _say(self, asked: Any = None) -> Any:
        self.asked.append(asked)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class SaysClaim(Says):
    @hookimpl
    async def claim(self, demand: Demand) -> Any:
        return self._say(demand)


class SaysReport(Says):
    @hookimpl
    async def report(self, events: Any) -> Any:
        return self._say(events)


class SaysReattach(Says):
    @hookimpl
    async def reattach(self, launch: Launch, running: bool) -> Any:
        return self._say((launch.start_id, running))


class SaysExecute(Says):
    @hookimpl
    def execute(self, launch: Launch) -> Any:
        return self._say(launch)


class SaysInventory(Says):
    @hookimpl
    async def inventory(self) -> Any:
        return self._say()


class Mute(Execution):
    """An execution whose handle a test names, or leaves out."""

    def __init__(self, handle: Any = None) -> None:
        if handle is not None:
            self.handle = handle

    async def wait(self) -> Outcome:
        raise NotImplementedError

    async def signal(self, signum: int) -> bool:
        raise NotImplementedError


def caller(limits: Limits | None = None, **plugins: Any) -> Caller:
    """With what a start needs, unless the test names its own."""
    plugins.setdefault("memory", GivenStore("a store"))
    plugins.setdefault("line", GivenScheduler("a scheduler"))
    if not any(isinstance(each, Judge | Allow) for each in plugins.values()):
        plugins["judge"] = Allow()
    if not any(hasattr(each, "execute") for each in plugins.values()):
        plugins["hand"] = HandExecutor()
    return Caller(manager_of(**{name: each for name, each in plugins.items() if each}), limits)


async def started(answer: Any) -> Any:
    if isinstance(answer, BaseException):
        raise answer
    return answer


def hand_run(handle: Mapping[str, Json] | None = None) -> HandRun:
    return HandRun(LAUNCH, handle if handle is not None else {"x": 1}, outlives=True)


# --- what an agent cannot do without


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ({"memory": None}, "exactly one plugin must give the store hook, but these do: none"),
        ({"memory2": GivenStore(1)}, "but these do: memory2, memory"),
        ({"line": None}, "exactly one plugin must give the schedule hook"),
        ({"line2": GivenScheduler(1)}, "but these do: line2, line"),
    ],
)
def test_one_store_and_one_scheduler(plugins: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        caller(**plugins)


def test_without_a_validator_nothing_starts() -> None:
    manager = manager_of(m=GivenStore(1), l=GivenScheduler(1), hand=HandExecutor())
    with pytest.raises(PluginError, match="no enabled plugin validates tasks"):
        Caller(manager)


def test_without_an_executor_nothing_starts() -> None:
    manager = manager_of(m=GivenStore(1), l=GivenScheduler(1), judge=Allow())
    with pytest.raises(PluginError, match="no enabled plugin executes tasks"):
        Caller(manager)


async def test_store_and_scheduler_are_what_their_plugins_give() -> None:
    hooks = caller()
    assert (await hooks.store(), hooks.schedule()) == ("a store", "a scheduler")
    with pytest.raises(PluginError, match="the plugin memory broke its contract: store must"):
        await caller(memory=GivenStore(None)).store()
    with pytest.raises(PluginError, match="the plugin line broke its contract: schedule must"):
        caller(line=GivenScheduler(None)).schedule()


# --- claim


async def test_each_source_is_asked_by_name_with_its_demand() -> None:
    one, two = SaysClaim(Claim(ask_again=1.0)), SaysClaim(Claim(ask_again=2.0))
    hooks = caller(one=one, two=two)
    assert hooks.sources == ["one", "two"]
    assert (await hooks.claim("two", Demand(slots=3))).ask_again == 2.0
    assert (one.asked, two.asked) == ([], [Demand(slots=3)])


async def test_a_claim_that_is_no_claim_names_the_plugin() -> None:
    with pytest.raises(PluginError, match="one broke its contract: claim must answer with a Claim"):
        await caller(one=SaysClaim([])).claim("one", Demand(slots=1))


async def test_a_source_that_is_not_here_is_named() -> None:
    with pytest.raises(PluginError, match="the plugin gone is not enabled here or has no claim"):
        await caller().claim("gone", Demand(slots=1))


async def test_the_errors_of_a_source_are_its_own() -> None:
    with pytest.raises(Unreachable, match="no route"):
        await caller(one=SaysClaim(Unreachable("no route"))).claim("one", Demand(slots=1))


# --- validate


async def judged(*verdicts: Any, limits: Limits | None = None) -> Verdict:
    judges: dict[str, Any] = {}
    for number, verdict in enumerate(verdicts, 1):
        judges[f"judge{number}"] = judge = Judge()
        judge.verdicts["t1"] = verdict
    return await within(caller(limits, **judges).validate(task(), LAUNCH))


async def test_all_must_allow_and_the_first_word_of_consent_is_told() -> None:
    assert await judged(Verdict.allow("a"), Verdict.allow("b")) == Verdict.allow("a")


async def test_one_denial_is_enough_wherever_it_stands() -> None:
    assert (await judged(Verdict.deny("no"), Verdict.allow())).reason == "no"
    assert (await judged(Verdict.allow(), Verdict.deny("no", "rule 7"))).rule == "rule 7"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "the validator judge2 gave no verdict"),
        (True, "the validator judge2 gave no verdict"),
        (ValueError("oh"), "the validator judge2 failed: ValueError: oh"),
        (TimeoutError(), "the validator judge2 failed: no answer in time"),
        (PluginError("a reason"), "the validator judge2 failed: a reason"),
    ],
)
async def test_errors_and_silence_are_denials(answer: Any, words: str) -> None:
    verdict = await judged(Verdict.allow(), answer)
    assert not verdict.allowed
    assert verdict.reason == words


async def test_a_validator_that_hangs_denies() -> None:
    verdict = await judged(asyncio.Event(), Verdict.allow(), limits=Limits(validate=0.01))
    assert not verdict.allowed
    assert verdict.reason == "the validator judge1 did not answer in 0.01 s"


async def test_after_a_denial_nobody_else_is_asked() -> None:
    denying, allowing = Judge(), Judge()
    denying.verdicts["t1"] = Verdict.deny("no")
    await caller(a=denying, b=allowing).validate(task(), LAUNCH)
    assert not allowing.asked.is_set()


# --- execute


async def begun(hooks: Caller) -> Execution:
    return await hooks.execute(hooks.choose(LAUNCH))


async def test_an_executor_that_fails_to_decide_began_nothing() -> None:
    class Broken:
        @hookimpl
        def execute(self, launch: Launch) -> None:
            raise ZeroDivisionError("x")

    with pytest.raises(NeverRan, match="the executor a failed: ZeroDivisionError: x"):
        caller(a=Broken(), b=HandExecutor()).choose(LAUNCH)


async def test_a_start_that_is_dropped_leaves_nothing_behind() -> None:
    executor = HandExecutor()
    caller(a=executor).choose(LAUNCH).drop()
    assert not executor.runs


async def test_the_first_executor_that_takes_it_begins_it() -> None:
    first, second, third = HandExecutor(), HandExecutor(), HandExecutor()
    first.takes = False
    hooks = caller(a=first, b=second, c=third)
    start = hooks.choose(LAUNCH)
    assert start.plugin == "b"
    assert not second.runs, "its name is stored before anything begins"
    assert await hooks.execute(start) is second.runs["s1"]
    assert not third.runs


async def test_a_task_that_nobody_takes_never_runs() -> None:
    nobody = HandExecutor()
    nobody.takes = False
    with pytest.raises(NeverRan, match="no enabled executor takes this task") as raised:
        caller(a=nobody).choose(LAUNCH)
    assert not raised.value.passing


async def test_an_executor_that_took_it_is_not_followed_by_another() -> None:
    first, second = HandExecutor(), HandExecutor()
    first.start_errors.append(NeverRan("no such program"))
    with pytest.raises(NeverRan, match="no such program"):
        await begun(caller(a=first, b=second))
    assert not second.runs


async def test_a_start_that_hangs_is_given_up() -> None:
    executor = HandExecutor()
    executor.gate = asyncio.Event()
    with pytest.raises(TimeoutError):
        await within(begun(caller(Limits(execute=0.01), a=executor)))


@pytest.mark.parametrize("answer", [True, 7, "started"])
async def test_an_executor_that_answers_with_no_awaitable_began_nothing(answer: Any) -> None:
    with pytest.raises(NeverRan, match="the plugin a broke its contract: execute must answer"):
        await begun(caller(a=SaysExecute(answer)))


@pytest.mark.parametrize("answer", [None, NeverStarted()])
async def test_an_executor_that_starts_no_execution_breaks_its_contract(answer: Any) -> None:
    with pytest.raises(PluginError, match="execute must answer with an Execution, not"):
        await begun(caller(a=SaysExecute(started(answer))))


@pytest.mark.parametrize("handle", [None, {"a": object()}, 7, {"a": "\ud800", 1j: 2}])
async def test_a_handle_that_cannot_be_stored_breaks_the_contract(handle: Any) -> None:
    with pytest.raises(PluginError, match="an Execution needs a handle that is"):
        await begun(caller(a=SaysExecute(started(Mute(handle)))))


async def test_the_leaked_coroutine_of_a_broken_answer_is_closed() -> None:
    async def inner() -> None:
        """Never awaited: closed, or the garbage collector would warn."""

    with pytest.raises(PluginError, match="not coroutine"):
        await begun(caller(a=SaysExecute(started(inner()))))


# --- reattach


async def asked_again(plugin: str, *, running: bool = True, **plugins: Any) -> Any:
    return await caller(**plugins).reattach(plugin, LAUNCH, running=running)


async def test_the_executor_of_the_run_alone_is_asked() -> None:
    run = hand_run()
    mine, other = SaysReattach(run), SaysReattach(Lost(reason="not mine"))
    assert await asked_again("mine", other=other, mine=mine) is run
    assert (mine.asked, other.asked) == ([("s1", True)], [])


async def test_a_start_that_its_executor_does_not_know_never_began() -> None:
    assert isinstance(await asked_again("hand", running=False, hand=HandExecutor()), NeverStarted)


@pytest.mark.parametrize("running", [True, False])
async def test_what_an_executor_without_memory_took_is_lost(running: bool) -> None:
    """It must not run twice, and nobody can tell whether it ran."""
    answer = await asked_again(
        "forgetful", running=running, forgetful=SaysExecute(None), hand=HandExecutor()
    )
    assert answer == Lost(reason="the executor forgetful cannot find runs again")


async def test_an_executor_that_is_not_enabled_any_more_is_waited_for() -> None:
    with pytest.raises(PluginError, match="the plugin gone is not enabled here or has no reattach"):
        await asked_again("gone")


@pytest.mark.parametrize("answer", [None, True, "lost"])
async def test_anything_else_is_no_answer(answer: Any) -> None:
    with pytest.raises(PluginError, match="reattach must answer with an Execution, NeverStarted"):
        await asked_again("a", a=SaysReattach(answer))


async def test_a_reattach_that_hangs_is_given_up() -> None:
    hand = HandExecutor()
    hand.gate = asyncio.Event()
    with pytest.raises(TimeoutError):
        await within(asked_again("hand", limits=Limits(reattach=0.01), hand=hand))


async def test_a_run_that_is_found_again_has_a_handle_too() -> None:
    with pytest.raises(PluginError, match="an Execution needs a handle"):
        await asked_again("a", a=SaysReattach(Mute()))


# --- report


def event(seq: int) -> Event:
    return Event(kind=EventKind.START, key=Key("t1", "a1"), source="s", run_no=1, at=0.0, seq=seq)


def receipt(seq: int) -> Receipt:
    return Receipt(seq=seq, answer=Answer.TAKEN)


async def test_receipts_are_those_of_the_source() -> None:
    source = SaysReport([receipt(1), receipt(2)])
    other = SaysReport([])
    hooks = caller(other=other, s=source)
    assert await hooks.report("s", [event(1), event(2)]) == source.answer
    assert other.asked == []


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        [receipt(1)],
        [receipt(2), receipt(1)],
        [receipt(1), receipt(3)],
        [receipt(1), None],
    ],
)
async def test_receipts_must_be_one_an_event_by_position(answer: Any) -> None:
    with pytest.raises(PluginError, match="report must answer with one receipt an event"):
        await caller(s=SaysReport(answer)).report("s", [event(1), event(2)])


# --- inventory and serve


async def test_of_two_who_tell_the_same_the_first_asked_counts_and_devices_add_up() -> None:
    gpus = [Gpu(index=number, uuid=f"u{number}", name="g") for number in range(2)]
    first = SaysInventory(Inventory(hostname="a", gpus=(gpus[0],)))
    second = SaysInventory(Inventory(hostname="b", cpu_cores=4, gpus=(gpus[1],)))
    told = await caller(first=first, second=second).inventory()
    assert told == Inventory(hostname="a", cpu_cores=4, gpus=tuple(gpus))


@pytest.mark.parametrize("answer", [ValueError("oh"), None, {"hostname": "x"}])
async def test_an_inventory_that_fails_misses_its_own_values_alone(answer: Any) -> None:
    good = SaysInventory(Inventory(hostname="a"))
    assert await caller(bad=SaysInventory(answer), good=good).inventory() == Inventory(hostname="a")


async def test_an_inventory_that_hangs_is_given_up() -> None:
    class Hangs:
        @hookimpl
        async def inventory(self) -> Inventory:
            await asyncio.Event().wait()
            raise AssertionError

    assert await within(caller(Limits(inventory=0.01), bad=Hangs()).inventory()) == Inventory()


async def test_everybody_who_serves_is_given_the_agent() -> None:
    class Serves:
        given: Any = None

        @hookimpl
        async def serve(self, agent: Any) -> None:
            self.given = agent

    class ServesWithoutLooking:
        served = False

        @hookimpl
        async def serve(self) -> None:
            self.served = True

    one, two = Serves(), ServesWithoutLooking()
    agent: Any = object()
    jobs = caller(one=one, two=two).serving(agent)
    assert [name for name, _ in jobs] == ["one", "two"]
    for _, job in jobs:
        await job
    assert one.given is agent
    assert two.served


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError("x"), "no answer in time"),
        (NeverRan("no room"), "no room"),
        (NeverRan(""), "NeverRan: "),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_an_error_becomes_words_for_a_record(error: BaseException, words: str) -> None:
    assert reason_of(error) == words
