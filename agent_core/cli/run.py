"""Runs one command line from its arguments to its exit code; the only place that prints errors."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import click
from click.shell_completion import shell_complete

from agent_core import __version__
from agent_core.api.wire import Code, Json
from agent_core.cli.exits import DEBUG, CommandFailed, Exit, exit_code, unexpected
from agent_core.cli.group import LazyGroup
from agent_core.cli.output import print_json_line
from agent_core.cli.text import visible_lines
from agent_core.errors import Refused, RemoteGPUError

PROGRAM = "remotegpu"
COMPLETE = "_REMOTEGPU_COMPLETE"  # set by the completion scripts

cli = LazyGroup(
    name=PROGRAM,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Run tasks on machines with GPUs, near or behind a NAT.

    Client commands read REMOTEGPU_URL and REMOTEGPU_TOKEN, else ~/.config/remotegpu/config.toml.

    \b
    remotegpu demo                            see it work on this machine
    remotegpu submit -- python3 train.py      a command, without a shell
    remotegpu submit -c 'nvidia-smi | head'   a shell text
    remotegpu tasks                           where everything stands
    """,
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            help="Show the version.",
            callback=lambda ctx, _, value: _show_version(ctx) if value else None,
        )
    ],
)


def _show_version(ctx: click.Context) -> None:
    click.echo(f"{PROGRAM} {__version__}")
    ctx.exit()


def run(args: Sequence[str]) -> int:
    """Do what the arguments say. Never raises; what went wrong is told in one sentence."""
    _open_streams()
    as_json = "--json" in _own(args)
    try:
        code = _invoke(list(args), as_json)
        if code == Exit.OK:  # else it failed already, and its own code says how
            sys.stdout.flush()
    except BrokenPipeError:
        return Exit.PIPE_CLOSED
    except OSError as error:  # what was written last found no room
        return _tell(_plain(error), as_json)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    finally:
        _forget_output()
    return code


def _open_streams() -> None:
    """Standard streams that can be used: whoever started us may have closed them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8


def _plain(error: OSError) -> CommandFailed:
    place = f"{error.filename}: " if error.filename else ""
    return CommandFailed(f"{place}{error.strerror or error}", Exit.FAILED, error)


def _own(args: Sequence[str]) -> Sequence[str]:
    """Our arguments, without those of a task's command."""
    return args[: list(args).index("--")] if "--" in args else args


def _invoke(args: list[str], as_json: bool) -> int:
    if instruction := os.environ.get(COMPLETE):
        return shell_complete(cli, {}, PROGRAM, COMPLETE, instruction)
    try:
        with cli.make_context(PROGRAM, args) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        return Exit.INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return Exit.USAGE
    except (click.ClickException, RemoteGPUError, CommandFailed) as error:
        return _tell(error, as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _tell(_plain(error), as_json)
    except Exception as error:
        return _tell(unexpected(error), as_json)
    return Exit.OK


def _tell(error: click.ClickException | RemoteGPUError | CommandFailed, as_json: bool) -> int:
    """Say what went wrong, to whoever listens still; the exit code."""
    if isinstance(error, click.ClickException):
        code, message = error.exit_code, error.format_message()
    else:
        code, message = exit_code(error), _said(error)
    with suppress(OSError):
        if os.environ.get(DEBUG) == "1":
            click.echo("".join(traceback.format_exception(_cause(error))), err=True, nl=False)
        if as_json:
            print_json_line({"error": _described(error, message, code)}, err=True)
            return code
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
            click.echo(f"Try '{error.ctx.command_path} --help' for help.", err=True)
        click.echo(f"{PROGRAM}: {visible_lines(message)}", err=True)
    return code


def _said(error: Exception) -> str:
    if isinstance(error, Refused) and error.business_code == Code.NOT_AUTHORISED:
        return f"{error}; here that is REMOTEGPU_TOKEN, or token in its configuration file"
    return str(error)


def _described(error: Exception, message: str, code: int) -> dict[str, Json]:
    cause = _cause(error)
    return {
        "kind": "Usage" if isinstance(cause, click.UsageError) else type(cause).__name__,
        "code": cause.business_code if isinstance(cause, Refused) else None,
        "message": message,
        "exit_code": int(code),
    }


def _cause(error: Exception) -> Exception:
    return error.cause if isinstance(error, CommandFailed) and error.cause else error


def _forget_output() -> None:
    """What nobody takes any more: the interpreter's last flush would make an exit code of it."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(quiet, stream.fileno())
    os.close(quiet)
