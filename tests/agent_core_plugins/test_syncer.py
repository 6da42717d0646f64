"""Events reach their sources in order and once, whoever is away, slow, broken or in between."""

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from agent_core import (
    Answer,
    Event,
    EventKind,
    Key,
    PluginContext,
    Receipt,
    Status,
    StoreError,
    StoreFull,
    Unreachable,
)
from agent_core.testing.agent import MemoryAgent
from agent_core.testing.clock import TurnedClock
from agent_core.testing.store import finish, make_event, make_outcome, make_task
from agent_core_plugins.sqlite_store.opening import open_database
from agent_core_plugins.sqlite_store.store import SqliteTasks
from agent_core_plugins.syncer import BATCH, GATHER, GATHER_MUCH, REPORT_LIMIT, Syncer
from agent_core_plugins.syncer.sources import LANES, LATE, STRIKES, Source


class Server:
    """Whoever gave the tasks: takes events, or behaves as a test tells it to."""

    def __init__(self, clock: TurnedClock) -> None:
        self.clock = clock
        self.reports: list[tuple[float, list[Event]]] = []  # when, what
        self.taken: list[Event] = []
        self.moments: set[float] = set()  # when something was taken
        self.away: set[str] = set()  # sources that cannot be reached
        self.answers: dict[Key, Answer] = {}  # to events of these tasks
        self.late: set[EventKind] = set()  # events of these kinds are put off
        self.poison: set[Key] = set()  # a report with one of these fails as a whole
        self.hangs: set[Key] = set()  # a report with one of these gets no answer
        self.broken = ValueError("cannot make sense of it")
        self.retry_after: float | None = None
        self.latency = 0.0
        self.under_way: Counter[Key] = Counter()
        self.most = 0

    async def report(self, events: Sequence[Event]) -> list[Receipt]:
        self.reports.append((self.clock.boottime(), list(events)))
        keys = [event.key for event in events]
        assert len({event.source for event in events}) == 1
        assert not self.under_way.keys() & set(keys), "a task's events are under way side by side"
        assert [event.seq for event in events] == sorted(event.seq for event in events)
        self.under_way.update(keys)
        self.most = max(self.most, self.under_way.total())
        try:
            return await self._answer(events)
        finally:
            self.under_way -= Counter(keys)

    async def _answer(self, events: Sequence[Event]) -> list[Receipt]:
        if self.latency:
            await self.clock.sleep(self.latency)
        keys = {event.key for event in events}
        if keys & self.hangs:
            await asyncio.Event().wait()
        if events[0].source in self.away:
            raise Unreachable("connection refused", retry_after=self.retry_after)
        if keys & self.poison:
            raise self.broken
        receipts = [
            Receipt(
                seq=event.seq,
                answer=Answer.RETRY
                if event.kind in self.late
                else self.answers.get(event.key, Answer.TAKEN),
                code=30005,
                message="a word",
                retry_after=self.retry_after,
            )
            for event in events
        ]
        self.taken += [
            event
            for event, receipt in zip(events, receipts, strict=True)
            if receipt.answer is Answer.TAKEN
        ]
        self.moments.add(self.clock.boottime())
        return receipts

    def times(self) -> list[float]:
        return [at for at, _ in self.reports]


class House:
    """An agent in memory, its server, and the syncer between them."""

    def __init__(self, agent: type[MemoryAgent] = MemoryAgent) -> None:
        self.clock = TurnedClock()
        self.server = Server(self.clock)
        self.agent = agent(reporter=self.server.report)
        self.said = LogCapture()
        log = structlog.wrap_logger(structlog.PrintLogger(), processors=[self.said])
        self.context = PluginContext(
            agent_id="agent-1",
            machine_id="machine-1",
            state_dir=Path("/nowhere"),
            runtime_dir=Path("/nowhere"),
            max_workers=2,
            clock=self.clock,
            log=log,
        )
        self.serving: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        syncer = Syncer(Syncer.Settings(), self.context)
        self.serving = asyncio.create_task(syncer.serve(self.agent))
        await self.clock.advance(0)

    async def end(self) -> None:
        if self.serving is not None:
            self.serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.serving

    def told(self, *kinds: EventKind, source: str = "server", task: str = "") -> Key:
        """A task of which these events wait."""
        fields = {"source": source, "status": Status.RUNNING, "run_no": 1}
        stored = make_task(**fields, **({"id": task} if task else {}))
        events = [make_event(stored, kind) for kind in kinds or (EventKind.COMPLETE,)]
        self.agent.add(stored, *events)
        return stored.key

    def words(self, level: str) -> list[str]:
        return [each["event"] for each in self.said.entries if each["log_level"] == level]


@pytest.fixture
async def house():
    house = House()
    yield house
    await house.end()


async def test_an_event_is_told_at_once(house):
    await house.begin()
    key = house.told()
    await house.clock.advance(0)
    assert [event.key for event in house.server.taken] == [key]
    assert house.agent.events == []
    assert house.said.entries == []


async def test_what_waited_at_the_start_is_told_in_order(house):
    keys = [house.told() for _ in range(BATCH * 3)]
    await house.begin()
    assert [event.key for event in house.server.taken] == keys
    assert house.agent.events == []


async def test_an_event_waits_until_the_earlier_one_of_its_task_is_settled(house):
    kinds = (EventKind.START, EventKind.RUN, EventKind.START, EventKind.COMPLETE)
    key = house.told(*kinds)
    other = house.told(EventKind.COMPLETE)
    house.server.answers[key] = Answer.RETRY
    await house.begin()
    assert [event.key for event in house.server.taken] == [other]
    assert [event.kind for event in house.agent.events] == list(kinds)
    house.server.answers.clear()
    await house.clock.advance(60)
    assert [event.kind for event in house.server.taken if event.key == key] == list(kinds)


async def test_what_follows_an_event_that_waits_is_told_again_with_it(house):
    """A source that took the later one of two may be told it twice, but never without the first."""
    key = house.told(EventKind.START, EventKind.COMPLETE)
    house.server.late = {EventKind.START}
    await house.begin()
    assert [event.kind for event in house.agent.events] == [EventKind.START, EventKind.COMPLETE]
    house.server.late = set()
    await house.clock.advance(60)
    assert [len(told) for _, told in house.server.reports] == [2, 2]
    assert [event.kind for event in house.server.taken if event.key == key] == [
        EventKind.COMPLETE,
        EventKind.START,
        EventKind.COMPLETE,
    ]


async def test_where_much_happens_events_gather_and_in_quiet_they_leave_at_once(house):
    await house.begin()
    first = house.told(EventKind.START)
    await house.clock.advance(0)
    assert [event.key for event in house.server.taken] == [first]
    keys = []
    for _ in range(20):
        keys.append(house.told())
        await house.clock.advance(GATHER / 25)
    assert len(house.server.reports) == 1
    await house.clock.advance(GATHER / 4)
    assert [event.key for event in house.server.reports[1][1]] == keys
    late = house.told()
    await house.clock.advance(GATHER)
    assert len(house.server.reports) == 2  # that was much: it gathers for longer
    await house.clock.advance(GATHER_MUCH - GATHER)
    assert [event.key for event in house.server.reports[2][1]] == [late]
    await house.clock.advance(GATHER)
    last = house.told()
    await house.clock.advance(0)
    assert [event.key for event in house.server.reports[3][1]] == [last]


async def test_a_full_report_does_not_wait_for_company(house):
    await house.begin()
    for _ in range(BATCH * 4 + 1):
        house.told()
    await house.clock.advance(0)
    assert [len(told) for _, told in house.server.reports] == [BATCH] * 4 + [1]
    house.told()
    await house.clock.advance(0)
    assert len(house.server.reports) == 5
    await house.clock.advance(GATHER)
    assert len(house.server.reports) == 6


async def test_an_agent_that_stops_gathers_no_more(house):
    await house.begin()
    house.told()
    await house.clock.advance(0)
    house.agent.stopping.set()
    for told in range(2, 5):
        house.told()
        await house.clock.advance(0)
        assert len(house.server.reports) == told


async def test_a_task_that_is_put_off_holds_up_no_other(house):
    culprit = house.told()
    house.server.answers[culprit] = Answer.RETRY
    await house.begin()
    for _ in range(50):
        house.told()
        await house.clock.advance(1)
    assert len(house.server.taken) == 50
    tries = [at for at, told in house.server.reports if culprit in {each.key for each in told}]
    assert 4 <= len(tries) <= 20  # with back-off, not each time
    gaps = [after - before for before, after in itertools.pairwise(tries)]
    assert all(gap >= 0.1 for gap in gaps)
    assert house.said.entries == []  # not the source's trouble


async def test_a_task_is_put_off_for_as_long_as_was_asked(house):
    key = house.told()
    house.server.answers[key] = Answer.RETRY
    house.server.retry_after = 100.0
    await house.begin()
    await house.clock.advance(99)
    assert len(house.server.reports) == 1
    house.server.answers.clear()
    await house.clock.advance(1)
    assert [event.key for event in house.server.taken] == [key]


@pytest.mark.parametrize("error", [ValueError("a bug"), Unreachable("502"), TimeoutError()])
async def test_a_task_that_no_report_survives_holds_up_no_other(house, error):
    house.server.broken = error
    keys = [house.told() for _ in range(30)]
    house.server.poison = {keys[0], keys[17]}
    await house.begin()
    await house.clock.advance(900)  # pauses are random, and up to a minute long
    assert {event.key for event in house.server.taken} == set(keys) - house.server.poison
    before = len(house.server.reports)
    house.said.entries.clear()
    for _ in range(60):  # and it does not slow the later ones down
        key = house.told()
        await house.clock.advance(5)
        assert key in {event.key for event in house.server.taken}
    assert len(house.server.reports) - before < 60 + 2 * 60
    assert not [word for word in house.words("warning") if "source" in word]
    house.server.poison = set()
    await house.clock.advance(120)
    assert house.agent.events == []


async def test_a_source_that_is_away_is_asked_ever_more_rarely(house):
    house.server.away = {"server"}
    for _ in range(500):
        house.told(EventKind.START, EventKind.COMPLETE)
    await house.begin()
    await house.clock.advance(3600)
    assert 60 <= len(house.server.reports) <= 300  # one a pause of up to 60 s
    assert house.server.most <= BATCH * LANES
    late = house.server.reports[LANES:]
    assert all(len(told) == 1 for _, told in late)  # to find out, one event is enough
    assert house.words("warning") == [
        "the source cannot be reached; what is to be told is kept and told when it can"
    ]
    house.server.away = set()
    await house.clock.advance(61)
    assert house.agent.events == []
    assert len(house.server.taken) == 1000
    assert (
        max(house.server.moments) - min(house.server.moments) <= 1
    )  # once it is back, everything at once
    assert house.words("info") == ["the source can be reached again"]
    assert len(house.said.entries) == 2


async def test_back_off_begins_anew_after_each_outage(house):
    await house.begin()
    for _ in range(3):
        house.server.away = {"server"}
        began = house.clock.boottime()
        house.told()
        await house.clock.advance(300)
        tries = [at - began for at in house.server.times() if at >= began]
        assert tries[0] == 0
        assert tries[1] <= 1.0  # the first pause is at most a second
        house.server.away = set()
        await house.clock.advance(61)
        assert house.agent.events == []
    assert len(house.words("warning")) == len(house.words("info")) == 3


async def test_a_source_that_names_a_time_is_left_alone_until_then(house):
    house.server.away = {"server"}
    house.server.retry_after = 120.0
    house.told()
    await house.begin()
    await house.clock.advance(119.9)
    for _ in range(20):
        house.told()  # news is no reason to ask earlier
        await house.clock.advance(0)
    assert len(house.server.reports) == 1
    house.server.away = set()
    await house.clock.advance(0.1)
    assert len(house.server.taken) == 21


async def test_a_source_that_is_away_hides_no_events_of_another(house):
    house.server.away = {"away"}
    for _ in range(BATCH * 5):
        house.told(source="away")
    here = house.told(source="here")
    await house.begin()
    assert [event.key for event in house.server.taken] == [here]
    later = house.told(source="here")
    await house.clock.advance(GATHER)
    assert house.server.taken[-1].key == later


async def test_a_source_that_takes_nothing_is_given_time(house):
    for _ in range(LATE * 3):
        house.server.answers[house.told()] = Answer.RETRY
    await house.begin()
    await house.clock.advance(600)
    sent = sum(len(told) for _, told in house.server.reports)
    assert sent < 20_000  # without a pause it is all of them every few seconds
    house.server.answers.clear()
    await house.clock.advance(900)
    assert len(house.server.taken) == LATE * 3


async def test_a_report_that_hangs_holds_up_no_other_task(house):
    hung = house.told()
    house.server.hangs = {hung}
    await house.begin()
    keys = [house.told() for _ in range(20)]
    await house.clock.advance(GATHER)
    assert [event.key for event in house.server.taken] == keys
    assert [event.key for event in house.agent.events] == [hung]


async def test_a_report_without_an_answer_is_given_up_and_made_again(house):
    hung = house.told()
    house.server.hangs = {hung}
    await house.begin()
    await house.clock.advance(REPORT_LIMIT - 1)
    assert len(house.server.reports) == 1
    house.server.hangs = set()
    await house.clock.advance(3)
    assert [event.key for event in house.server.taken] == [hung]
    assert house.said.entries[0]["why"] == "no answer in 600 s"
    assert len(house.server.reports) == 2


async def test_no_more_reports_than_lanes_are_under_way_to_one_source(house):
    house.server.latency = 5.0
    await house.begin()
    for _ in range(50):
        house.told(source="one")
        house.told(source="two")
        await house.clock.advance(GATHER)
    sources = [told[0].source for _, told in house.server.reports]
    assert Counter(sources) == {"one": LANES, "two": LANES}
    await house.clock.advance(20)
    assert len(house.server.taken) == 100


async def test_when_the_agent_stops_what_waits_is_tried_at_once(house):
    house.server.away = {"server"}
    house.server.retry_after = 300.0
    put_off = house.told(source="other")
    house.server.answers[put_off] = Answer.RETRY
    waiting = house.told()
    await house.begin()
    await house.clock.advance(10)
    assert house.server.taken == []
    house.server.away = set()
    house.server.answers.clear()
    house.agent.stopping.set()
    await house.clock.advance(0)
    assert {event.key for event in house.server.taken} == {put_off, waiting}
    last = house.told()  # what comes while it stops goes too
    await house.clock.advance(0)
    assert house.server.taken[-1].key == last
    assert not house.serving.done()


async def test_an_event_that_is_refused_is_said_with_where_to_find_it(house):
    key = house.told(EventKind.START, EventKind.COMPLETE)
    house.server.answers[key] = Answer.REFUSED
    await house.begin()
    assert [event.kind for event, _ in house.agent.dead] == [EventKind.START, EventKind.COMPLETE]
    assert house.agent.events == []
    entry = house.said.entries[0]
    assert entry["log_level"] == "error"
    assert "dead_letters" in entry["event"]
    assert (entry["task"], entry["code"], entry["why"]) == (key.task_id, 30005, "a word")
    assert len(house.said.entries) == 2


async def test_a_stale_event_lets_the_next_one_follow(house):
    key = house.told(EventKind.START, EventKind.COMPLETE)
    house.server.answers[key] = Answer.STALE
    await house.begin()
    assert house.agent.events == []
    assert len(house.server.reports) == 1
    assert house.said.entries == []


class Troubled(MemoryAgent):
    """One whose store fails for a while."""

    reading: Exception | None = None
    settling: Exception | None = None
    settles = 0

    async def outbox(self, **asked):
        if self.reading:
            raise self.reading
        return await super().outbox(**asked)

    async def settle(self, receipts):
        self.settles += 1
        if self.settling:
            raise self.settling
        await super().settle(receipts)


@pytest.fixture
async def troubled():
    house = House(Troubled)
    yield house
    await house.end()


async def test_an_outbox_that_cannot_be_read_is_read_later(troubled):
    troubled.agent.reading = StoreError("damaged")
    key = troubled.told()
    await troubled.begin()
    await troubled.clock.advance(300)
    assert troubled.words("error") == ["events to report cannot be read, trying again"]
    troubled.agent.reading = None
    await troubled.clock.advance(60)
    assert [event.key for event in troubled.server.taken] == [key]
    assert troubled.words("info") == ["events to report can be read again"]


async def test_what_was_reported_and_cannot_be_settled_is_not_reported_again(troubled):
    troubled.agent.settling = StoreFull("no room")
    key = troubled.told(EventKind.START, EventKind.COMPLETE)
    await troubled.begin()
    others = [troubled.told() for _ in range(3)]
    kinds = [EventKind.START, EventKind.COMPLETE]
    await troubled.clock.advance(300)
    assert troubled.agent.settles > 5
    assert Counter(event.key for event in troubled.server.taken) == Counter([key, key, *others])
    assert set(troubled.words("error")) == {"what was reported cannot be settled yet"}
    assert len(troubled.words("error")) <= LANES
    troubled.agent.settling = None
    await troubled.clock.advance(60)
    assert troubled.agent.events == []
    assert [event.kind for event in troubled.server.taken if event.key == key] == kinds


async def test_an_agent_that_ends_between_report_and_settle_reports_again(troubled):
    troubled.agent.settling = StoreFull("no room")
    key = troubled.told(EventKind.START, EventKind.COMPLETE)
    await troubled.begin()
    await troubled.end()
    troubled.agent.settling = None
    await troubled.begin()
    kinds = [event.kind for event in troubled.server.taken if event.key == key]
    assert kinds == [EventKind.START, EventKind.COMPLETE] * 2


async def test_the_syncer_ends_when_it_is_cancelled_whatever_is_under_way(house):
    house.server.latency = 5.0
    for _ in range(10):
        house.told()
    await house.begin()
    house.server.away = {"server"}
    await house.end()
    await asyncio.sleep(0)
    assert house.clock.sleeping == 0
    assert house.server.under_way.total() == 0


async def test_a_syncer_with_nothing_to_do_waits_for_no_clock(house):
    house.told()
    await house.begin()
    await house.clock.advance(3600)
    assert house.clock.next_wake == float("inf")
    assert len(house.server.reports) == 1


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_happens_each_event_arrives_in_order_and_is_taken_once(house, seed):
    """Random events, outages, slow answers, refusals and restarts; then calm."""
    rng = random.Random(seed)
    await house.begin()
    sent: dict[Key, list[EventKind]] = {}
    for step in range(200):
        house.server.latency = rng.choice([0.0, 0.0, 0.5, 7.0])
        house.server.away = set(rng.sample(["a", "b", "c"], rng.choice([0, 0, 1, 3])))
        pool = list(sent)
        house.server.poison = set(rng.sample(pool, min(len(pool), rng.choice([0, 0, 2]))))
        slow = rng.sample(pool, min(len(pool), rng.choice([0, 3])))
        house.server.answers = dict.fromkeys(slow, Answer.RETRY)
        for _ in range(rng.randrange(4)):
            kinds = rng.choices(list(EventKind), k=rng.randrange(1, 4))
            number = rng.randrange(40)
            key = house.told(*kinds, source="abc"[number % 3], task=f"task {number}")
            sent.setdefault(key, []).extend(kinds)
        if step % 50 == 49:
            await house.end()  # whatever was under way is told again by the next life
            await house.begin()
        await house.clock.advance(rng.choice([0.0, 0.1, 1.0, 20.0]))
    house.server.away, house.server.poison, house.server.answers = set(), set(), {}
    house.server.latency = 0.0
    await house.clock.advance(400)
    assert house.agent.events == []
    arrived: dict[Key, list[int]] = {}
    for event in house.server.taken:
        arrived.setdefault(event.key, []).append(event.seq)
    assert arrived.keys() == sent.keys()
    for key, numbers in arrived.items():
        first = list(dict.fromkeys(numbers))  # a repeat after a restart changes no order
        assert first == sorted(first)
        assert len(first) == len(sent[key])


class Highest(random.Random):
    """The longest pause that could be drawn."""

    def uniform(self, a: float, b: float) -> float:
        return b


def source() -> Source:
    return Source(name="server", rng=Highest())


def events_of(*names: str) -> list[Event]:
    return [make_event(make_task(id=name, attempt_id=""), EventKind.STATE) for name in names]


def test_a_task_under_suspicion_goes_by_itself_until_it_had_an_answer():
    server = source()
    a, b = Key("a", ""), Key("b", "")
    server.failed([a, b], "refused", 0.0, None)
    server.answered(1.0)
    sent = events_of("c", "a", "d", "b", "c")
    assert server.batch(sent) == [sent[0], sent[2], sent[4]]
    sent = events_of("a", "b", "c", "a")
    assert server.batch(sent) == [sent[0], sent[3]]
    server.put_off(a, 2.0, None)  # an answer, although not the wanted one
    assert server.batch(sent) == [sent[0], sent[2], sent[3]]


def test_a_proven_culprit_is_not_let_go_when_an_outage_ends():
    server = source()
    culprit, other = Key("culprit", ""), Key("other", "")
    server.failed([culprit, other], "refused", 0.0, None)
    server.answered(1.0)
    assert server.failed([culprit], "a bug", 1.0, None) is False
    due = server.late[culprit].due
    assert due > 1.0
    server.failed([other, Key("third", "")], "refused", 1.5, None)
    server.answered(1.5)
    assert server.late[culprit].due == due
    assert server.late[other].due == 1.5


def test_a_source_remembers_a_bounded_number_of_tasks():
    server = source()
    keys = [Key(f"{number}", "") for number in range(LATE + 500)]
    for now, key in enumerate(keys):
        server.put_off(key, float(now), 1000.0)
    assert list(server.late) == keys[500:]
    server.failed(keys, "away", 0.0, None)
    assert len(server.late) == LATE


def test_one_answer_in_flight_ends_an_outage_that_another_lane_saw():
    server = source()
    one, two = Key("one", ""), Key("two", "")
    for _ in range(8):
        assert server.failed([one, two], "refused", server.paused_until, None) == (
            server.away == "refused" and server.failures == 1
        )
    assert server.paused_until > 20.0
    assert not server.ready(server.paused_until - 0.1)
    assert server.answered(20.0)
    assert server.ready(20.0)
    assert not server.answered(20.0)  # that is said once
    server.failed([one, two], "refused", 20.0, None)
    assert server.paused_until == 21.0


def test_tasks_under_suspicion_that_all_fail_are_not_the_culprits():
    server = source()
    keys = [Key(f"{number}", "") for number in range(STRIKES)]
    server.failed(keys, "refused", 0.0, None)
    assert server.answered(5.0)
    newly = [server.failed([key], "refused", 5.0, None) for key in keys]
    assert newly == [False] * (STRIKES - 1) + [True]
    assert server.away
    assert server.answered(9.0)  # who failed while others were taken is not let go at once
    struck = [server.late[key].due <= 9.0 for key in keys]
    assert struck[-1]
    assert server.failed([keys[0]], "refused", 10.0, None) is False
    assert not server.away


def test_lanes_that_fail_together_count_as_one_outage():
    server = source()
    for number in range(LANES):
        server.failed([Key(f"{number}", ""), Key("x", "")], "refused", 0.0, None)
    assert server.paused_until == 1.0
    assert server.failures == LANES


class StoredAgent(MemoryAgent):
    """One with a real store behind its outbox."""

    store: SqliteTasks

    async def outbox(self, **asked):
        return await self.store.outbox(**asked)

    async def settle(self, receipts):
        await self.store.settle(receipts)
        await self._tell()


async def test_results_from_a_real_store_arrive_whole_and_are_gone_from_it(tmp_path):
    house = House(StoredAgent)
    house.agent.store = store = SqliteTasks(open_database(tmp_path / "agent.db"))
    tasks = [make_task(source="server") for _ in range(60)]
    await store.add(tasks, {})
    for number, task in enumerate(tasks):
        start = make_event(task, EventKind.START)
        assert await store.save(task, {"run_no": 1}, start)
        await finish(store, replace(task, run_no=1), make_outcome(bytes([number]) * 2**18))
    house.server.answers[tasks[5].key] = Answer.REFUSED
    await house.begin()
    while await store.outbox(limit=1):
        await house.clock.advance(GATHER)
        await asyncio.sleep(0.001)
    assert len(house.server.taken) == 118
    ends = [event for event in house.server.taken if event.kind is EventKind.COMPLETE]
    assert {event.key: event.outcome.stdout[:1] for event in ends} == {
        task.key: bytes([number]) for number, task in enumerate(tasks) if number != 5
    }
    assert [event.kind for event, _ in await store.dead_letters()] == [
        EventKind.START,
        EventKind.COMPLETE,
    ]
    await house.end()
    await store.close()
