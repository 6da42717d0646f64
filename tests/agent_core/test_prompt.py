"""A coroutine that is begun by hand behaves as an awaited one does."""

import asyncio
from typing import Any

import pytest

from agent_core.prompt import begin
from tests.agent_core.core import within


async def bounded(asked: Any, seconds: float = 20.0) -> Any:
    at_once, answer = begin(asked)
    if at_once:
        return answer
    async with asyncio.timeout(seconds):
        return await answer


async def test_an_answer_that_is_there_at_once_needs_no_wait() -> None:
    async def plain() -> int:
        return 7

    assert begin(plain()) == (True, 7)


async def test_an_answer_that_takes_its_time_is_awaited_through_every_wait() -> None:
    seen: list[Any] = []

    async def slow() -> str:
        for number in range(3):
            await asyncio.sleep(0)
            seen.append(asyncio.current_task())
            seen.append(await asyncio.sleep(0.001, number))
        return "done"

    assert await within(asyncio.create_task(bounded(slow()))) == "done"
    assert seen[1::2] == [0, 1, 2]
    assert len(set(seen[0::2])) == 1


@pytest.mark.parametrize("waits", [0, 1])
async def test_an_error_comes_through(waits: int) -> None:
    async def fails() -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        await bounded(fails())


async def test_who_takes_too_long_is_ended_and_may_clean_up() -> None:
    said: list[str] = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            said.append("cleaned")

    with pytest.raises(TimeoutError):
        await bounded(hangs(), 0.01)
    assert said == ["cleaned"]


async def test_an_error_of_what_it_waits_for_is_its_own_to_handle() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def careful() -> str:
        try:
            return str(await future)
        except ValueError as error:
            return f"handled {error}"

    asyncio.get_running_loop().call_soon(future.set_exception, ValueError("it"))
    assert await bounded(careful()) == "handled it"


async def test_what_is_no_coroutine_is_left_as_it_is() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    assert begin(future) == (False, future)
