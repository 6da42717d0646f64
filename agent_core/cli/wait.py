"""`wait`, and the waiting that `submit --wait` shares with it."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import click

from agent_core.api.wire import Json
from agent_core.cli.config import connect
from agent_core.cli.exits import CommandFailed, Exit, failing_with, own_code
from agent_core.cli.ids import ids_argument
from agent_core.cli.output import json_option, note, print_json
from agent_core.cli.text import Duration, span, words
from agent_core.errors import Refused, Unreachable

if TYPE_CHECKING:
    from agent_core.api.client import Client

FIRST_PAUSE: Final = 0.2  # seconds between two looks, growing
LAST_PAUSE: Final = 2.0
FINAL: Final = frozenset({"completed", "failed", "cancelled", "stopped"})
PATIENCE: Final = 4  # looks without an answer before the server was ever reached


@click.command(
    epilog="""\b
    Exit code: with one ID the task's own (124 after its time-out, 128+n after signal n, 125 if it
    never ran, was refused, cancelled or lost, or if remotegpu itself failed); with several 0 if all
    completed, else 1.
    \b
    Examples:
      remotegpu wait $ID && echo done
      remotegpu wait --timeout 2h $ID1 $ID2
    """
)
@ids_argument()
@click.option("--timeout", type=Duration(), help="Give up waiting after that time (exit code 125).")
@json_option
def wait(task_ids: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Wait until tasks have ended."""
    alone = len(task_ids) == 1
    with failing_with(Exit.NO_OWN_CODE if alone else Exit.FAILED):
        with connect(as_json=as_json) as client:
            ended = Waiting(client, timeout=timeout, as_json=as_json).until_final(task_ids)
        tell(ended, as_json=as_json, alone=alone)
    if alone:
        raise click.exceptions.Exit(own_code(ended[0]))
    raise click.exceptions.Exit(int(any(task["status"] != "completed" for task in ended)))


def tell(tasks: Sequence[dict[str, Json]], *, as_json: bool, alone: bool) -> None:
    """How they ended."""
    if as_json:
        print_json(tasks[0] if alone else {"tasks": list(tasks)})
        return
    for task in tasks:
        click.echo(how_it_ended(task))


def how_it_ended(task: dict[str, Json]) -> str:
    line = f"{words(task['id'])} {words(task['status'])}"
    if task.get("exit_code") is not None:
        line += f", exit code {words(task['exit_code'])}"
    if task.get("signal"):
        line += f" ({words(task['signal'])})"
    if task.get("error"):
        line += f": {words(task['error'])}"
    return line


class Waiting:
    """Looks at tasks until they are final; a server that is away for a while is waited for."""

    def __init__(
        self,
        client: "Client",
        *,
        timeout: float | None = None,
        as_json: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._as_json = as_json
        self._sleep = sleep
        self._clock = clock
        self._timeout = timeout
        self._deadline = None if timeout is None else clock() + timeout
        self._reached = False  # the server answered at least once
        self._misses = 0  # looks in a row that brought no answer

    def until_final(
        self, task_ids: Sequence[str], *, reached: bool = False
    ) -> list[dict[str, Json]]:
        """The tasks as they ended, in the order asked for."""
        self._reached = reached
        try:
            return self._until_final(task_ids)
        except KeyboardInterrupt:
            goes_on = "waiting has ended, the tasks have not: wait for them again, or cancel them"
            note(goes_on, as_json=self._as_json)
            raise

    def _until_final(self, task_ids: Sequence[str]) -> list[dict[str, Json]]:
        ended: dict[str, dict[str, Json]] = {}
        pause = FIRST_PAUSE
        while True:
            for task_id in dict.fromkeys(task_ids):
                if task_id not in ended and (task := self._look(task_id)):
                    ended[task_id] = task
            if all(task_id in ended for task_id in task_ids):
                return [ended[task_id] for task_id in task_ids]
            self._rest(pause)
            pause = min(pause * 1.5, LAST_PAUSE)

    def _look(self, task_id: str) -> dict[str, Json] | None:
        from agent_core.api.client import passing  # noqa: PLC0415  # httpx costs 100 ms

        try:
            task = self._client.task(task_id)
        except (Refused, Unreachable) as error:
            if not passing(error):
                raise
            self._miss(error)
            return None
        if self._misses:
            note("the control plane answers again", as_json=self._as_json)
        self._reached, self._misses = True, 0
        return task if task["status"] in FINAL else None

    def _miss(self, error: Refused | Unreachable) -> None:
        self._misses += 1
        if not self._reached and self._misses >= PATIENCE:
            raise error
        if self._reached and self._misses == 1:
            note(f"{error}; still waiting", as_json=self._as_json)

    def _rest(self, pause: float) -> None:
        if self._deadline is not None:
            left = self._deadline - self._clock()
            if left <= 0:
                raise CommandFailed(
                    f"not ended after {span(self._timeout or 0)}; it goes on, wait again for it",
                    Exit.NO_OWN_CODE,
                )
            pause = min(pause, left)
        self._sleep(pause)
