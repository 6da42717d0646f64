"""A thing that happens again and again."""

import asyncio

from agent_core.signals import Signal
from tests.agent_core.core import within


async def test_everybody_who_waits_is_told() -> None:
    signal = Signal()
    waiting = [signal.next() for _ in range(3)]
    signal.send()
    await within(asyncio.gather(*waiting))


async def test_what_is_sent_before_the_wait_begins_is_not_remembered() -> None:
    signal = Signal()
    signal.send()
    assert not signal.next().done()


async def test_nothing_is_missed_between_asking_and_awaiting() -> None:
    """Source looks at the room, then waits: a slot freed in between must wake it."""
    signal = Signal()
    room = signal.next()
    signal.send()
    stop = asyncio.ensure_future(asyncio.Event().wait())
    done, _ = await within(asyncio.wait({room, stop}, return_when=asyncio.FIRST_COMPLETED))
    assert done == {room}
    stop.cancel()


async def test_sending_twice_is_no_error_and_who_gave_up_is_forgotten() -> None:
    signal = Signal()
    given_up, waiting = signal.next(), signal.next()
    given_up.cancel()
    signal.send()
    signal.send()
    await within(waiting)
    await asyncio.sleep(0)
    assert not signal._waiting
