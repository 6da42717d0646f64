"""`submit`: what a person means to run, made into a task."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent_core.api.wire import USER_BODY_LIMIT, Json
from agent_core.cli.array import Indexes, member, submit_all
from agent_core.cli.config import connect, user_name
from agent_core.cli.exits import Exit, failing_with, own_code
from agent_core.cli.explain import hint
from agent_core.cli.needs import needs, needs_options, pairs
from agent_core.cli.output import json_option, note, print_json, print_json_line
from agent_core.cli.text import Duration, words
from agent_core.cli.wait import Waiting, how_it_ended

if TYPE_CHECKING:
    from agent_core.api.client import Client

ARGUMENT_LIMIT: Final = 131_071  # bytes of one argument that Linux hands to a program
STDIN: Final = "standard input"  # what `-` is called; a file of that name is written ./…
DIRECT: Final = "agent_core.cli.submit.direct"  # what stood behind `--`, in the context's meta


class SubmitCommand(click.Command):
    """Takes what stands behind `--` apart from everything else before options are read."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[DIRECT] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "(-- CMD [ARGS]... | -c TEXT | FILE | -)"]


def _absolute(_ctx: click.Context, _param: click.Parameter, path: str) -> str:
    if path and not path.startswith("/"):
        raise click.BadParameter(
            f"{path!r} is not absolute; it is a path on the machine that runs it"
        )
    return path


@click.command(
    cls=SubmitCommand,
    epilog="""\b
    Examples:
      remotegpu submit -- python3 train.py --epochs 3     the program itself, no shell
      remotegpu submit -c 'nvidia-smi | grep MiB'         a text for the shell
      remotegpu submit --type python -c 'print(2**64)'    python code
      remotegpu submit job.sh                             a script, by its #! line
      generate | remotegpu submit --name sweep -          a script from standard input
      remotegpu submit --wait --timeout 5m -- make test   exit code of the task
      remotegpu submit --follow -- make test              its output as well, as it comes
      remotegpu submit --gpus 1 --gpu a100 -- ./train     a GPU of its own
      remotegpu submit --array 0-9 job.sh                 ten tasks
      remotegpu submit --after $ID1,$ID2 -- ./collect     when both have completed
    """,
)
@click.argument("file", required=False, metavar="FILE")
@click.option(
    "-c", "--shell", "text", metavar="TEXT", help="Run this text: by the shell, or by --type."
)
@click.option(
    "--type", "kind", type=click.Choice(["shell", "python", "script"]),
    help="How FILE (default: script) or TEXT (default: shell) is run.",
)  # fmt: skip
@click.option("--name", help="A name for people; lists can be filtered by its beginning.")
@click.option("--priority", type=click.IntRange(1, 10), help="1 is the most urgent; default 5.")
@click.option("--timeout", type=Duration(), help="Longest time of one run; default 1h.")
@click.option("--retries", type=click.IntRange(0), help="Runs after a failed one; default 0.")
@click.option(
    "--retry-delay", type=Duration(), help="Pause before a retry; default 60s, which 0 means too."
)
@click.option(
    "--env", metavar="NAME=VALUE", multiple=True, callback=pairs,
    help="A variable of the task's environment. May be repeated.",
)  # fmt: skip
@click.option(
    "--workdir", default="", callback=_absolute, help="Absolute path; default: a private one."
)
@needs_options
@click.option("--user", help="Whose task it is, for lists; default: you.")
@click.option(
    "--array", type=Indexes(), metavar="INDEXES",
    help="One task for each index of 0-9, 0-9:2 or 1,3,5, told to it as REMOTEGPU_ARRAY_INDEX.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for its end and exit with its own code.")
@click.option(
    "--follow", is_flag=True,
    help="Show its output as it comes, and exit with its own code; Ctrl-C leaves it running.",
)  # fmt: skip
@click.option(
    "--idempotency-key", help="The same key and the same task again: the first one's answer."
)
@click.option("--id", "task_id", help="An id (UUID) of your own for the new task.")
@json_option
@click.pass_context
def submit(ctx: click.Context, /, **given: Any) -> None:
    """Submit a task: a command behind `--`, a text with -c, or a script from FILE or - (stdin).

    Prints the new task's id. With --wait or --follow how it ended is told on standard error; with
    --follow the id is told there too, and standard output is the task's.
    """
    fields = _what(ctx.meta.get(DIRECT), given["file"], given["text"], given["kind"])
    fields |= _how(given) | needs(given)
    fields["user"] = given["user"] if given["user"] is not None else user_name(os.environ)
    indexes = given["array"]
    if indexes is not None:
        if given["task_id"] or given["follow"]:
            option = "--id" if given["task_id"] else "--follow"
            raise click.UsageError(f"{option} is for one task, and --array makes many")
        _check_size(member(fields, max(indexes)))
        raise click.exceptions.Exit(_array(fields, indexes, given))
    _check_size(fields)
    raise click.exceptions.Exit(_one(fields, given))


def _one(fields: Mapping[str, Json], given: Mapping[str, Any]) -> int:
    as_json, key = given["as_json"], given["idempotency_key"]
    if not (given["wait"] or given["follow"]):
        with connect(as_json=as_json) as client:
            task = client.submit(fields, key=key)
            print_json(task) if as_json else click.echo(words(task["id"]))
            hint(client, fields, task["id"], as_json=as_json)
        return Exit.OK
    to_its_end = _follow if given["follow"] else _wait
    with failing_with(Exit.NO_OWN_CODE), connect(as_json=as_json) as client:
        task = client.submit(fields, key=key)
        hint(client, fields, task["id"], as_json=as_json)
        ended = to_its_end(client, task, as_json)
    return own_code(ended)


def _array(fields: Mapping[str, Json], indexes: Sequence[int], given: Mapping[str, Any]) -> int:
    as_json, key, waits = given["as_json"], given["idempotency_key"], given["wait"]
    told: list[dict[str, Json]] = []

    def took(index: int, task: Mapping[str, Json]) -> None:
        if not as_json:
            click.echo(words(task["id"]))
        elif not waits:
            names = ("id", "name", "status")
            told.append({"index": index, **{name: task.get(name) for name in names}})

    with failing_with(Exit.FAILED) if waits else nullcontext(), connect(as_json=as_json) as client:
        ids = submit_all(client, fields, indexes, key=key, took=took, as_json=as_json)
        hint(client, fields, ids[0], as_json=as_json)
        if waits:
            ended = Waiting(client, as_json=as_json).until_final(ids, known=True)
            if as_json:
                print_json({"tasks": ended})
            for task in () if as_json else ended:
                note(how_it_ended(task))
            return int(any(task["status"] != "completed" for task in ended))
    if as_json:
        print_json({"tasks": told})
    return Exit.OK


def _wait(client: "Client", task: Mapping[str, Json], as_json: bool) -> Mapping[str, Json]:
    if not as_json:
        click.echo(words(task["id"]))
        sys.stdout.flush()
    ended = Waiting(client, as_json=as_json).until_final([task["id"]])[0]
    print_json(ended) if as_json else note(how_it_ended(ended))
    return ended


def _follow(client: "Client", task: Mapping[str, Json], as_json: bool) -> Mapping[str, Json]:
    from agent_core.cli.logs import follow_with  # noqa: PLC0415  # `submit --help` needs none of it
    from agent_core.cli.viewers import STREAMS, JsonLines, Plain  # noqa: PLC0415

    if as_json:
        print_json_line({"task": task})
    else:
        note(f"submitted {words(task['id'])}")
    viewer = JsonLines() if as_json else Plain(STREAMS)
    ended = follow_with(viewer, client, task["id"])
    print_json_line({"task": ended}) if as_json else note(how_it_ended(ended))
    return ended


def _what(
    direct: Sequence[str] | None, file: str | None, text: str | None, kind: str | None
) -> dict[str, Json]:
    """The task's command from the one form that was given."""
    forms = [form for form in (direct, file, text) if form is not None]
    if len(forms) > 1 or direct == []:
        raise click.UsageError("give one of these: -- CMD [ARGS], -c TEXT, FILE, or - for stdin")
    if not forms:
        raise click.UsageError(
            "nothing to run: give -- CMD [ARGS], -c TEXT, FILE, or - for a script from stdin"
        )
    if direct:
        if kind is not None:
            raise click.UsageError("--type belongs to FILE or -c TEXT; behind -- stands a program")
        return {"command": direct[0], "args": list(direct[1:]), "exec": True}
    if text is not None:
        return _checked(text, kind or "shell", "-c")
    source = STDIN if file in (None, "-") else str(file)
    return _checked(_read(source), kind or "script", source)


def _read(source: str) -> str:
    try:
        if source == STDIN:
            data = sys.stdin.buffer.read(USER_BODY_LIMIT + 1)
        else:
            with Path(source).open("rb") as script:
                data = script.read(USER_BODY_LIMIT + 1)
        return data.decode()
    except FileNotFoundError:
        raise click.UsageError(
            f"there is no file {source}; to run a program write: remotegpu submit -- {source} …"
        ) from None
    except OSError as error:
        raise click.UsageError(f"{source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.UsageError(
            f"{source} is no UTF-8 text; a program is sent by its path"
        ) from None


def _checked(text: str, kind: str, form: str) -> dict[str, Json]:
    size = len(text.encode("utf-8", "replace"))
    limit = USER_BODY_LIMIT if kind == "script" else ARGUMENT_LIMIT
    if not text.strip():
        raise click.UsageError(f"{form} is empty: there is nothing to run")
    if "\0" in text:
        raise click.UsageError(f"{form} holds a NUL character; a script is text")
    if size > limit:
        way = "" if kind == "script" else "; with --type script and a #! line it may be 1 MiB long"
        raise click.UsageError(f"{form} is longer than {limit} bytes{way}")
    return {"command": text, "type": kind}


def _check_size(fields: dict[str, Json]) -> None:
    """Arguments may hold any bytes and be long; JSON holds text, and a request 1 MiB."""
    try:
        size = len(json.dumps(fields, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise click.UsageError("an argument or option is no UTF-8 text") from None
    if size > USER_BODY_LIMIT:
        raise click.UsageError(f"as JSON that is {size} bytes, and a task has {USER_BODY_LIMIT}")


def _how(given: dict[str, Any]) -> dict[str, Json]:
    """The task's other fields; what was not said is the server's to fill."""
    named = {
        "id": given["task_id"],
        "name": given["name"],
        "priority": given["priority"],
        "timeout": _number(given["timeout"]),
        "max_retries": given["retries"],
        "retry_delay": _number(given["retry_delay"]),
        "env": given["env"] or None,
        "workdir": given["workdir"] or None,
    }
    return {key: value for key, value in named.items() if value is not None}


def _number(seconds: float | None) -> float | int | None:
    """Whole seconds as an integer: the wire tells 3 from 3.0."""
    return int(seconds) if seconds is not None and seconds.is_integer() else seconds
