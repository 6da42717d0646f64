"""Starting one process: its two FIFOs, and exec by the path that the kernel does fastest."""

from __future__ import annotations

import errno
import fcntl
import os
import resource

FILES = 65536  # descriptors that a supervisor asks for: two a run and a few
OURS = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
THEIRS = os.O_RDWR | os.O_CLOEXEC
NOT_THERE = (errno.ENOENT, errno.ENOTDIR)


class Refused(Exception):
    """No process began: errno, and at which stage."""

    def __init__(self, errno: int, stage: str) -> None:
        super().__init__(f"{stage}: {os.strerror(errno)}")
        self.errno = errno
        self.stage = stage


class Spawner:
    """Holds what every start needs."""

    def __init__(self, fifos: str, *, quick: bool | None = None) -> None:
        """`quick`: by posix_spawn, at half the cost of subprocess. None: where that is possible."""
        self._fifos = fifos
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._given = resource.getrlimit(resource.RLIMIT_NOFILE)  # what the tasks get
        soft, hard = self._given
        wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
        self._ours = (max(soft, wanted), hard)
        self._raised = self._ours != self._given
        self._quick = _can_spawn_sessions() if quick is None else quick
        resource.setrlimit(resource.RLIMIT_NOFILE, self._ours)

    def start(
        self, start_id: str, argv: list[str], env: dict[str, str], cwd: str, file: str = ""
    ) -> tuple[int, tuple[int, int]]:
        """Start it; its pid, and our ends of stdout and stderr. Raises Refused.

        `file` is executed if it is given, else what argv[0] names. The child is not waited for:
        whoever asked reaps it.
        """
        opened: list[int] = []
        try:
            for path in (f"{self._fifos}/{start_id}.out", f"{self._fifos}/{start_id}.err"):
                # Both ends read-write: neither side ever meets an end of file or a broken pipe.
                os.mkfifo(path, 0o600)
                opened.append(self.high(os.open(path, OURS)))
                opened.append(os.open(path, THEIRS))
            pid = self._begin((file, argv), env, cwd, opened[1], opened[3])
        except Refused:
            self._drop(start_id, opened)
            raise
        except OSError as error:
            self._drop(start_id, opened)
            raise Refused(error.errno or 0, "fifo") from error
        os.close(opened[1])
        os.close(opened[3])
        return pid, (opened[0], opened[2])

    def remove(self, start_id: str) -> None:
        """The run has ended: its FIFOs go."""
        for path in (f"{self._fifos}/{start_id}.out", f"{self._fifos}/{start_id}.err"):
            try:
                os.unlink(path)
            except OSError:
                continue

    def _drop(self, start_id: str, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        self.remove(start_id)

    def high(self, descriptor: int) -> int:
        """Out of the low numbers, which a start needs while the tasks' own limit is in force."""
        low = self._given[0]
        if not self._raised or descriptor < low // 2:
            return descriptor
        high: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, low)
        os.close(descriptor)
        return high

    def _begin(
        self, what: tuple[str, list[str]], env: dict[str, str], cwd: str, stdout: int, stderr: int
    ) -> int:
        """Directory and limits are inherited, and setting them in the child would cost vfork (20
        times slower): so for the moment of the start they are the task's, not ours."""
        try:
            os.chdir(cwd)
        except OSError as error:
            raise Refused(error.errno or 0, "cwd") from error
        except ValueError as error:  # a NUL
            raise Refused(errno.EINVAL, "cwd") from error
        if self._raised:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._given)
        try:
            if self._quick:
                return self._spawn(what, env, stdout, stderr)
            return self._popen(what, env, stdout, stderr)
        except OSError as error:
            raise Refused(error.errno or 0, "exec") from error
        except (ValueError, TypeError) as error:  # a NUL, or an "=" in a name
            raise Refused(errno.EINVAL, "exec") from error
        finally:
            if self._raised:
                resource.setrlimit(resource.RLIMIT_NOFILE, self._ours)
            os.chdir("/")

    def _spawn(
        self, what: tuple[str, list[str]], env: dict[str, str], stdout: int, stderr: int
    ) -> int:
        """All descriptors of ours are close-on-exec; these three are the child's."""
        file, argv = what[0] or what[1][0], what[1]
        actions = (
            (os.POSIX_SPAWN_DUP2, self._null, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        )
        if "/" in file:
            return os.posix_spawn(file, argv, env, file_actions=actions, setsid=True)
        refused = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
        for directory in os.get_exec_path(env):
            program = os.path.join(directory, file)
            if os.path.lexists(program):
                try:
                    return os.posix_spawn(program, argv, env, file_actions=actions, setsid=True)
                except OSError as error:  # it may be found further on, as exec would look for it
                    if error.errno not in NOT_THERE or refused.errno in NOT_THERE:
                        refused = error  # type: ignore[assignment]
        raise refused

    def _popen(
        self, what: tuple[str, list[str]], env: dict[str, str], stdout: int, stderr: int
    ) -> int:
        file, argv = what
        import subprocess  # noqa: PLC0415 (a megabyte, for old C libraries alone)

        child = subprocess.Popen(
            argv,
            executable=file or None,
            env=env,
            stdin=self._null,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            close_fds=False,
        )
        child.returncode = 0  # or subprocess would wait for it behind our back
        return child.pid


def _can_spawn_sessions() -> bool:
    """Was this Python built with a C library whose posix_spawn makes sessions?"""
    try:
        os.posix_spawn("/", ["/"], {}, setsid=True)
    except NotImplementedError:
        return False
    except OSError:  # a directory is no program
        return True
    return True
