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
from agent_core.cli.patience import Patience
from agent_core.cli.text import Duration, span, words

if TYPE_CHECKING:
    from agent_core.api.client import Client

FIRST_PAUSE: Final = 0.2  # seconds between two looks, growing
LAST_PAUSE: Final = 2.0
FINAL: Final = frozenset({"completed", "failed", "cancelled", "stopped"})
REQUEST: Final = 30.0  # seconds for each step of a request


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
    """Looks at tasks until they are final; a control plane that is away is waited for."""

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
        self._stale = False  # what is known of a task may be of long ago
        self._missed: Exception | None = None  # why there is no answer now
        self._patience = Patience(away=self._away, back=self._back, sleep=self._rest)

    def until_final(self, task_ids: Sequence[str], *, known: bool = False) -> list[dict[str, Json]]:
        """The tasks as they ended, in the order asked for. Not `known`: each is sought first."""
        try:
            seen = {} if known else {task_id: self._look(task_id) for task_id in task_ids}
            return [self._ended(task_id, seen.get(task_id)) for task_id in task_ids]
        except KeyboardInterrupt:
            self._note("waiting has ended, the tasks have not: wait for them again, or cancel them")
            raise

    def _ended(self, task_id: str, task: dict[str, Json] | None) -> dict[str, Json]:
        """One after the other: while the first is waited for, the others go on as well."""
        pause = FIRST_PAUSE
        while task is None or task["status"] not in FINAL:
            if task is not None and not self._stale:
                self._rest(pause)
                pause = min(pause * 1.5, LAST_PAUSE)
            self._stale = False
            task = self._look(task_id)
        self._stale = True  # whatever was seen of the next one is older than this
        return task

    def _look(self, task_id: str) -> dict[str, Json]:
        task = self._patience.ask(
            lambda: self._client.task(task_id, timeout=self._request_timeout())
        )
        # Of thousands of tasks nobody could keep the output.
        return task if self._as_json else {**task, "stdout": None, "stderr": None}

    def _request_timeout(self) -> float | None:
        """Seconds for one request: as usual, or until the time is up."""
        left = self._left()
        return None if left is None else min(REQUEST, max(left, FIRST_PAUSE))

    def _left(self) -> float | None:
        return None if self._deadline is None else self._deadline - self._clock()

    def _away(self, error: Exception) -> None:
        self._missed = error
        self._note(f"{error}; still waiting")

    def _back(self) -> None:
        self._missed = None
        self._note("the control plane answers again")

    def _note(self, text: str) -> None:
        note(text, as_json=self._as_json)

    def _rest(self, pause: float) -> None:
        left = self._left()
        if left is not None:
            if left <= 0:
                told = "" if self._missed is None else f" ({self._missed})"
                raise CommandFailed(
                    f"not ended after {span(self._timeout or 0)}{told}; it goes on, wait again "
                    "for it",
                    Exit.NO_OWN_CODE,
                )
            pause = min(pause, left)
        self._sleep(pause)
