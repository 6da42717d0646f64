"""A run as a child process of the agent itself: what a short executor is made of.

    class MyExecutor:
        @hookimpl
        def execute(self, launch: Launch) -> Awaitable[Execution]:
            return ChildExecution.start(launch, ["my-wrapper", "--", *launch.words], env=…)

        @hookimpl
        async def reattach(self, launch: Launch, running: bool) -> NeverStarted | Lost:
            return ChildExecution.recall(launch, running=running)

Such a run ends with the agent's own stop, so `survives` stays False. An agent that is killed
cannot end it: wrap it in something that dies with its parent.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from agent_core import processes
from agent_core.errors import NeverRan, RemoteGPUError
from agent_core.execution import Execution
from agent_core.models import Launch, Lost, NeverStarted, Outcome, Piece, Reason, Stream, Usage
from agent_core.program import PATH, never_ran

BEGAN = ".began"  # a file in the scratch directory: this start was tried
CAP = 1024 * 1024  # bytes kept of each stream
READ = 256 * 1024  # bytes read at once
LOOK_AGAIN = (0.001, 0.25)  # seconds between two looks at a tree that is being killed: first, most


class Capture:
    """What is kept of one stream: the first and the last half of a cap."""

    def __init__(self, cap: int) -> None:
        self._half = cap // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room < len(data) else b""
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    def kept(self) -> tuple[bytes, int]:
        """Head, a marker if something is missing, and tail; and how many bytes are."""
        tail = bytes(self._tail[-self._half :])
        dropped = self.total - len(self._head) - len(tail)
        marker = b"\n...[truncated, %d bytes dropped]\n" % dropped if dropped else b""
        return bytes(self._head) + marker + tail, dropped

    def piece(self, offset: int, limit: int) -> Piece:
        """At most `limit` bytes of the stream from `offset` on; those that are gone are skipped."""
        offset, limit = max(offset, 0), max(limit, 0)
        if offset < len(self._head):
            return Piece(offset, bytes(self._head[offset : offset + limit]), self.total)
        begin = self.total - len(self._tail)
        offset = max(offset, min(begin, self.total))
        return Piece(offset, bytes(self._tail[offset - begin :][:limit]), self.total)

    def last(self, limit: int) -> bytes:
        return bytes((self._head + self._tail)[-limit:]) if limit > 0 else b""


class ChildExecution(Execution):
    """One child process in a session of its own, with what it leaves behind.

    Use `start`. A subclass may override `signal` where a wrapper has a better way.
    """

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        launch: Launch,
        cap: int,
        *,
        wrapped: bool,
        began: float,
    ) -> None:
        self.handle = {"pid": process.pid}
        self._pid = process.pid
        self._start_id = launch.start_id
        self._began_file = Path(launch.scratch, BEGAN)
        self._wrapped = wrapped
        self._leader = processes.Process.read(process.pid)
        self._began = began  # monotonic, and not later than the process
        self._captures: dict[Stream, Capture] = {"stdout": Capture(cap), "stderr": Capture(cap)}
        self._pipes: dict[int, Capture] = {}
        self._reaped = False
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[tuple[int, Any]] = self._loop.create_future()
        for file, capture in zip(
            (process.stdout, process.stderr), self._captures.values(), strict=True
        ):
            assert file is not None, "start makes pipes"
            self._follow(os.dup(file.fileno()), capture)
            file.close()
        process.returncode = 0  # we wait for it: subprocess must not
        self._pidfd = os.pidfd_open(self._pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @classmethod
    async def start(
        cls,
        launch: Launch,
        argv: Sequence[str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        grace: float = 10.0,
        max_output_size: int = CAP,
        wrapped: bool = False,
    ) -> Self:
        """Start `argv` (the launch's own if not given) with exactly this environment.

        `grace` is seconds between TERM and KILL, `max_output_size` bytes kept of each stream.
        `wrapped`: argv[0] is a wrapper that would end at a TERM without its task having had its
        grace; signals but KILL go past it to what runs inside. Raises NeverRan if no process began.
        """
        argv, cwd = list(argv or launch.argv), cwd or launch.cwd
        env = launch.env if env is None else env
        if not os.path.isdir(launch.cwd):
            raise never_ran(errno.ENOENT, argv=launch.argv, cwd=launch.cwd, at="cwd")
        began = Path(launch.scratch, BEGAN)
        try:
            began.touch()
        except OSError as error:
            raise never_ran(error.errno or 0, argv=argv, cwd=cwd, at="scratch") from error
        before = time.monotonic()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 (takes a millisecond)
                argv,
                executable=launch.program or None if argv == list(launch.argv) else None,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except ValueError as error:
            began.unlink(missing_ok=True)
            raise NeverRan(f"the command or its environment cannot be used: {error}") from error
        except OSError as error:
            began.unlink(missing_ok=True)
            at = "cwd" if error.filename == cwd != argv[0] else "exec"
            path = env.get("PATH", PATH)
            raise never_ran(error.errno or 0, argv=argv, cwd=cwd, path=path, at=at) from error
        execution = cls(process, launch, max_output_size, wrapped=wrapped, began=before)
        execution.grace = grace
        return execution

    @staticmethod
    def recall(launch: Launch, *, running: bool) -> NeverStarted | Lost:
        """What to answer to `reattach`: not ours or never tried, or lost, for nobody saw its end.

        Raises RemoteGPUError while something of it still lives: asked again, it will be gone.
        """
        if not running and not Path(launch.scratch, BEGAN).exists():
            return NeverStarted()
        if processes.of_run(processes.living(launch.start_id), 0):
            raise RemoteGPUError("the run outlived its agent and has not ended yet")
        return Lost(reason="it was a child of an agent that was killed")

    async def wait(self) -> Outcome:
        status, used = await asyncio.shield(self._ended)
        wait, most = LOOK_AGAIN
        left: set[processes.Process] = set()
        while left := processes.remains(processes.living(self._start_id), self._leader, left):
            _send({one.pid for one in left if not one.dying}, signal.SIGKILL)
            await asyncio.sleep(wait)
            wait = min(2 * wait, most)
        return self._outcome(status, used)

    async def signal(self, signum: int) -> bool:
        if self._reaped or _is_zombie(self._pid):
            return False
        tree = processes.of_run(processes.living(self._start_id), self._pid)
        if self._wrapped and signum != signal.SIGKILL:
            wrapper = processes.program(self._pid)
            tree = {pid for pid in tree if processes.program(pid) != wrapper} or {self._pid}
        _send(tree, signum)
        return True

    async def forget(self) -> None:
        self._began_file.unlink(missing_ok=True)

    async def tail(self, stream: Stream, limit: int) -> bytes:
        return self._captures[stream].last(limit)

    async def output(self, stream: Stream, offset: int, limit: int) -> Piece:
        return self._captures[stream].piece(offset, limit)

    # --- inside

    def _follow(self, pipe: int, capture: Capture) -> None:
        os.set_blocking(pipe, False)
        self._pipes[pipe] = capture
        self._loop.add_reader(pipe, self._read, pipe)

    def _read(self, pipe: int) -> None:
        try:
            data = os.read(pipe, READ)
        except BlockingIOError:
            return
        if data:
            self._pipes[pipe].add(data)
        else:
            self._drop(pipe)

    def _drop(self, pipe: int) -> None:
        self._loop.remove_reader(pipe)
        os.close(pipe)
        del self._pipes[pipe]

    def _reap(self) -> None:
        """The main process has ended: take what the pipes hold, however many hold them open."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        for pipe in tuple(self._pipes):
            held: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))[0]
            if held:
                self._pipes[pipe].add(os.read(pipe, held))
            self._drop(pipe)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)  # the zombie keeps the number ours
        _, status, used = os.wait4(self._pid, 0)
        self._reaped = True
        if not self._ended.done():
            self._ended.set_result((status, used))

    def _outcome(self, status: int, used: Any) -> Outcome:
        stdout, dropped_stdout = self._captures["stdout"].kept()
        stderr, dropped_stderr = self._captures["stderr"].kept()
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Outcome(
            reason=Reason.SIGNAL if killed else Reason.EXITED,
            exit_code=128 + killed if killed else os.WEXITSTATUS(status),
            signal=signal_name(killed) if killed else None,
            stdout=stdout,
            stderr=stderr,
            dropped_stdout=dropped_stdout,
            dropped_stderr=dropped_stderr,
            usage=Usage(
                wall_s=time.monotonic() - self._began,
                user_s=used.ru_utime,
                system_s=used.ru_stime,
                max_rss_bytes=used.ru_maxrss * 1024,
            ),
            ended_at=time.time(),
        )


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; a real-time signal as `SIG40`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _is_zombie(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _send(pids: Collection[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signum)
