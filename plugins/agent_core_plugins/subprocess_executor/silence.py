"""Notices supervisors that are there and do not answer: stopped, or stuck.

Such a one's runs go on, and their ends wait for it: it is away, and nothing of it is ever lost. New
runs begin under another one.
"""

from typing import Any

from agent_core import Clock

from .house import House
from .link import Link

LOOK = 5.0  # seconds between two looks


async def attend(house: House, clock: Clock, log: Any) -> None:
    """For as long as the agent lives. Says once when one falls silent, and once when it answers."""
    silent: set[Link] = set()
    while True:
        await clock.sleep(LOOK)
        for link in house.living():
            if link.attend() and link not in silent:
                log.warning(
                    "a supervisor does not answer, is it stopped? Its runs go on, their ends wait"
                    " for it, and new ones begin under another",
                    place=link.place,
                    pid=link.pid,
                    runs=len(link.runs),
                )
            elif link in silent and not link.silent:
                log.info("a supervisor answers again", place=link.place)
        silent = {link for link in house.living() if link.silent}
