"""Runs each task under bubblewrap: a read-only system, a private /tmp, no network."""

import shutil
from collections.abc import Awaitable, Iterator
from pathlib import Path

from agent_core import (
    ChildExecution,
    Duration,
    Execution,
    Launch,
    Lost,
    NeverRan,
    NeverStarted,
    PluginContext,
    PluginError,
    Section,
    find_program,
    hookimpl,
)

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives", "/etc/passwd")


class BubblewrapSettings(Section):
    """What a site may set under [bubblewrap]."""

    visible: tuple[str, ...] = ()
    """Further directories that tasks may read."""
    grace: Duration = 10.0
    """How long a task may take to end after SIGTERM."""


class Bubblewrap:
    """Takes every task."""

    Settings = BubblewrapSettings

    def __init__(self, settings: BubblewrapSettings, context: PluginContext) -> None:
        self._settings = settings
        self._shown = (*SYSTEM, *settings.visible)
        if not (bwrap := shutil.which("bwrap")):
            raise PluginError("bwrap is not installed; install bubblewrap, or disable this plugin")
        self._bwrap = bwrap

    @hookimpl
    def execute(self, launch: Launch) -> Awaitable[Execution]:
        return self._start(launch)

    async def _start(self, launch: Launch) -> Execution:
        env = {"PATH": "/usr/bin:/bin", "HOME": launch.scratch, **launch.env}
        seen = (launch.scratch, *self._shown)
        if not any(Path(launch.cwd).is_relative_to(path) for path in seen):
            raise NeverRan(f"the working directory {launch.cwd} is not visible in the sandbox")
        find_program(launch, env)
        return await ChildExecution.start(
            launch,
            [self._bwrap, *self._sandbox(launch, env), *launch.words],
            env={},  # bwrap stands outside: a task must not choose its PATH or LD_PRELOAD
            grace=self._settings.grace,
            wrapped=True,  # a TERM is for the task, not for bwrap
        )

    @hookimpl
    async def reattach(self, launch: Launch, running: bool) -> Execution | NeverStarted | Lost:
        return ChildExecution.recall(launch, running=running)

    def _sandbox(self, launch: Launch, env: dict[str, str]) -> Iterator[str]:
        yield from ("--die-with-parent", "--new-session", "--unshare-all", "--clearenv")
        for name, value in env.items():
            yield from ("--setenv", name, value)
        yield from ("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")
        yield from (word for path in self._shown for word in ("--ro-bind-try", path, path))
        Path(launch.progress).touch()  # a file is bound, so it must be there
        yield from ("--bind", launch.scratch, launch.scratch)
        yield from ("--bind", launch.progress, launch.progress)
        if launch.script:
            yield from ("--ro-bind", launch.script[0], launch.script[0])
        yield from ("--chdir", launch.cwd, "--")
