"""Who is woken, whatever happens just while a claim looks at the queue."""

import asyncio
from typing import Any

import pytest

from agent_control_plane import waker as waker_module
from agent_control_plane.messages import Asks, Ordered, Ready
from agent_control_plane.needs import Offer
from agent_control_plane.waker import Waiter, Waker
from agent_core.api.http import Problem
from agent_core.testing.clock import TurnedClock

ANY = Ready("", "", 5)


class Hall:
    """Claims of agents, each with a machine of its own."""

    def __init__(self) -> None:
        self.clock = TurnedClock()
        self.waker = Waker(self.clock)
        self.gone: dict[str, asyncio.Future[None]] = {}

    def enlist(self, name: str) -> Waiter:
        self.gone[name] = asyncio.get_running_loop().create_future()
        return self.waker.enlist(name)

    def wait(self, waiter: Waiter, **more: Any) -> "asyncio.Task[bool]":
        """It has looked and found nothing."""
        name = waiter.agent_id
        offer = Offer(**{"machine_id": f"m-{name}", "limit": 1, **more})
        return asyncio.create_task(self.waker.wait(waiter, offer, 60, self.gone[name]))

    async def idle(self, name: str, **more: Any) -> "tuple[Waiter, asyncio.Task[bool]]":
        waiter = self.enlist(name)
        task = self.wait(waiter, **more)
        await asyncio.sleep(0)
        assert not task.done()
        return waiter, task


@pytest.fixture
async def hall() -> Hall:
    return Hall()


async def test_whoever_has_waited_longest_is_woken(hall: Hall) -> None:
    (_, first), (_, second) = await hall.idle("a"), await hall.idle("b")
    hall.waker.heard(ANY)
    assert await first is True
    assert not second.done()
    hall.waker.heard(ANY)
    assert await second is True


async def test_one_word_of_many_tasks_wakes_as_many(hall: Hall) -> None:
    waits = [(await hall.idle(name))[1] for name in "abcd"]
    hall.waker.heard(ANY._replace(many=3))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [task.done() for task in waits] == [True, True, True, False]
    waits[3].cancel()


async def test_what_nobody_idle_can_take_wakes_nobody(hall: Hall) -> None:
    _, wait = await hall.idle("a", labels={"x": "1"})
    hall.waker.heard(Ready("m-b", "", 5))
    hall.waker.heard(Ready("", '{"labels":{"x":"2"}}', 5))
    await asyncio.sleep(0)
    assert not wait.done()
    hall.waker.heard(Ready("", '{"labels":{"x":"1"}}', 5))
    assert await wait is True


async def test_what_comes_while_a_claim_looks_lets_it_look_again(hall: Hall) -> None:
    waiter = hall.enlist("a")
    hall.waker.heard(ANY)
    assert await hall.wait(waiter) is True
    assert hall.waker.idle == 0
    again = hall.wait(waiter)  # it has looked, and nothing came meanwhile
    await asyncio.sleep(0)
    assert hall.waker.idle == 1
    again.cancel()


async def test_what_came_before_a_claim_began_to_look_is_in_the_queue_for_it(hall: Hall) -> None:
    other = hall.enlist("other")  # keeps what nobody could take in mind
    hall.waker.heard(ANY)
    _, wait = await hall.idle("a")
    assert not wait.done()
    assert await hall.wait(other) is True
    wait.cancel()


async def test_what_an_idle_claim_is_woken_for_is_told_to_no_other(hall: Hall) -> None:
    looks = hall.enlist("looks")
    _, idle = await hall.idle("idle")
    hall.waker.heard(ANY)
    assert await idle is True
    wait = hall.wait(looks)
    await asyncio.sleep(0)
    assert not wait.done()
    wait.cancel()


async def test_one_task_lets_one_of_those_who_look_look_again(hall: Hall) -> None:
    one, two = hall.enlist("one"), hall.enlist("two")
    hall.waker.heard(ANY)
    assert await hall.wait(one) is True
    wait = hall.wait(two)
    await asyncio.sleep(0)
    assert not wait.done()
    wait.cancel()


async def test_whoever_leaves_without_a_look_hands_on_what_it_was_woken_for(hall: Hall) -> None:
    waiter, first = await hall.idle("a")
    _, second = await hall.idle("b")
    hall.waker.heard(ANY._replace(many=1))
    assert await first is True
    assert not second.done()
    hall.waker.leave(waiter)  # its client hung up
    assert await second is True


async def test_whoever_has_looked_hands_nothing_on(hall: Hall) -> None:
    waiter, first = await hall.idle("a")
    _, second = await hall.idle("b")
    hall.waker.heard(ANY)
    assert await first is True
    waiter.woken_for = None
    hall.waker.leave(waiter)
    await asyncio.sleep(0)
    assert not second.done()
    second.cancel()


async def test_a_command_that_comes_while_its_agent_looks_is_not_missed(hall: Hall) -> None:
    waiter = hall.enlist("a")
    hall.waker.heard(Ordered("a"))
    hall.waker.heard(Ordered("b"))
    assert await hall.wait(waiter) is True
    wait = hall.wait(waiter)
    await asyncio.sleep(0)
    assert not wait.done()
    hall.waker.heard(Ordered("a"))
    assert await wait is True


async def test_only_a_later_claim_of_the_agent_ends_one(hall: Hall) -> None:
    waiter, wait = await hall.idle("a")
    hall.waker.heard(Asks("a", waiter.made - 1))
    hall.waker.heard(Asks("a", waiter.made))
    await asyncio.sleep(0)
    assert not wait.done()
    hall.waker.heard(Asks("a", waiter.made + 1))
    await wait
    assert waiter.over


async def test_words_that_were_missed_let_everybody_look(hall: Hall) -> None:
    looks = hall.enlist("looks")
    waits = [(await hall.idle(name))[1] for name in "ab"]
    hall.waker.missed()
    assert await asyncio.gather(*waits) == [True, True]
    assert await hall.wait(looks) is True


async def test_time_that_is_up_and_clients_that_go_end_a_wait(hall: Hall) -> None:
    _, late = await hall.idle("a")
    _, gone = await hall.idle("b")
    hall.gone["b"].set_result(None)
    assert await gone is False
    await hall.clock.advance(60)
    assert await late is False


async def test_a_server_that_stops_ends_every_wait_and_begins_none(hall: Hall) -> None:
    looks = hall.enlist("looks")
    _, wait = await hall.idle("a")
    hall.waker.stop()
    await wait
    assert await hall.wait(looks) is False
    assert await hall.wait(hall.enlist("late")) is False


async def test_more_than_can_wait_are_refused(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waker_module, "MOST_HANGING", 2)
    for name in "ab":
        hall.enlist(name)
    with pytest.raises(Problem):
        hall.enlist("c")
