"""`remotegpu server`: the control plane in the foreground."""

import asyncio
import errno
import gc
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from agent_control_plane.settings import ServerSettings

FILES = 2**20  # more than one process serves
NO_FILES = (errno.EMFILE, errno.ENFILE)
QUIET = 60.0  # seconds until it is said again


@click.command(
    epilog="""\b
    Examples:
      REMOTEGPU_SERVER__AGENT_TOKEN=… REMOTEGPU_SERVER__USER_TOKEN=… remotegpu server
      remotegpu server --settings /etc/remotegpu/server.toml
    """
)
@click.option(
    "--settings", "file", metavar="FILE", type=click.Path(path_type=Path),
    help="Read this settings file instead of looking for one.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Log in JSON.")
def server(file: Path | None, as_json: bool) -> None:
    """Run the control plane until it is stopped.

    The first SIGTERM or Ctrl-C answers what is under way and ends, a second one ends at once.
    """
    from agent_control_plane.settings import ServerSettings  # noqa: PLC0415  # only when it runs
    from agent_core import log  # noqa: PLC0415
    from agent_core.sections import LogSection  # noqa: PLC0415
    from agent_core.settings import load  # noqa: PLC0415

    environ = dict(os.environ)
    if as_json:
        environ["REMOTEGPU_LOG__FORMAT"] = "json"
    loaded = load(file, environ)
    settings = loaded.section("server", ServerSettings)
    from agent_control_plane.db import password_of  # noqa: PLC0415

    secrets = (settings.agent_token, settings.user_token, password_of(settings.database))
    log.configure(loaded.section("log", LogSection), secrets=secrets)
    for warning in loaded.warnings:
        log.get("settings").warning(warning)
    _check_tokens(settings)
    _raise_files()
    asyncio.run(_serve(settings))


def _check_tokens(settings: "ServerSettings") -> None:
    """A server that nobody, or everybody, can talk to does not start."""
    from agent_core.errors import SettingsError  # noqa: PLC0415

    for name in ("agent_token", "user_token"):
        if not getattr(settings, name):
            raise SettingsError(
                f"server.{name} is not set; make one by `openssl rand -hex 32` and set it as "
                f"{name} in [server] of the settings, or as REMOTEGPU_SERVER__{name.upper()}"
            )
    if settings.agent_token == settings.user_token:
        raise SettingsError(
            "server.agent_token and server.user_token are the same; "
            "agents must not be able to act as users: make another one for either"
        )


def _raise_files() -> None:
    """Each agent keeps two connections, and the usual soft limit is 1,024 files."""
    import resource  # noqa: PLC0415

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Trouble:
    """The loop's exception handler: it would write thousands of tracebacks when files run out."""

    def __init__(self) -> None:
        self._said = -QUIET

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        from agent_core import log  # noqa: PLC0415

        error = context.get("exception")
        if isinstance(error, ValueError) and "_start_serving" in str(context.get("handle")):
            return  # it meant to listen again a second later, and has ended by now
        if not (isinstance(error, OSError) and error.errno in NO_FILES):
            loop.default_exception_handler(context)
        elif loop.time() - self._said >= QUIET:
            self._said = loop.time()
            log.get("server").error(
                "out of open files, new connections wait; each agent keeps two: raise the hard "
                "limit (`ulimit -Hn`, LimitNOFILE= in a unit of systemd) and start it again",
                reason=error.strerror,
            )


async def _serve(settings: "ServerSettings") -> None:
    """Raises RemoteGPUError if it cannot begin, with what to do about it."""
    import signal  # noqa: PLC0415

    from agent_control_plane.app import create_app  # noqa: PLC0415
    from agent_control_plane.db import Database  # noqa: PLC0415
    from agent_control_plane.plane import Plane  # noqa: PLC0415
    from agent_core import log  # noqa: PLC0415
    from agent_core.api.http import QuietServer  # noqa: PLC0415
    from agent_core.clock import SystemClock  # noqa: PLC0415

    listener = _listen(settings.host, settings.port)
    try:
        database = Database.open(settings.database)
    except BaseException:
        listener.close()
        raise
    plane = Plane(settings, database, SystemClock())
    http = QuietServer(create_app(plane), on_stop=plane.stop)
    gc.collect()
    gc.freeze()  # what stands now stays: looking through it again took a fifth of a claim
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Trouble())
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, http.stop)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    logger = log.get("server")
    logger.info(
        "listening",
        url=f"http://{host}:{listener.getsockname()[1]}",
        database=database.name,
    )
    await http.serve(sockets=[listener])
    logger.info("stopped")


def _listen(host: str, port: int) -> socket.socket:
    """Raises RemoteGPUError in words."""
    from agent_core.api.http import listen  # noqa: PLC0415
    from agent_core.errors import RemoteGPUError  # noqa: PLC0415

    try:
        return listen(host, port)
    except socket.gaierror as error:
        raise RemoteGPUError(
            f"server.host: {host} is no address ({error.strerror}); "
            "use 127.0.0.1, or 0.0.0.0 for every address of this machine"
        ) from None
    except OSError as error:
        raise RemoteGPUError(
            f"cannot listen on {host} port {port} ({error.strerror}); stop what listens there, "
            "or choose another by REMOTEGPU_SERVER__PORT"
        ) from None
