"""Starting one process: its two FIFOs, and exec by the path that the kernel does fastest."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess

FILES = 65536  # descriptors that a supervisor asks for: two a run and a few


class Refused(Exception):
    """No process began: errno, and at which stage."""

    def __init__(self, errno: int, stage: str) -> None:
        super().__init__(f"{stage}: {os.strerror(errno)}")
        self.errno = errno
        self.stage = stage


class Spawner:
    """Holds what every start needs."""

    def __init__(self, fifos: str) -> None:
        self._fifos = fifos
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._given = resource.getrlimit(resource.RLIMIT_NOFILE)  # what the tasks get
        soft, hard = self._given
        wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
        self._ours = (max(soft, wanted), hard)
        self._raised = self._ours != self._given
        resource.setrlimit(resource.RLIMIT_NOFILE, self._ours)

    def paths(self, start_id: str) -> tuple[str, str]:
        return f"{self._fifos}/{start_id}.out", f"{self._fifos}/{start_id}.err"

    def start(
        self, start_id: str, argv: list[str], env: dict[str, str], cwd: str
    ) -> tuple[int, tuple[int, int]]:
        """Start it; its pid, and our ends of stdout and stderr. Raises Refused.

        The child is not waited for: whoever asked reaps it.
        """
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for path in self.paths(start_id):
                self._fifo(path, ours, theirs)
            pid = self._exec(argv, env, cwd, theirs)
        except Refused:
            self._drop(start_id, ours)
            raise
        except OSError as error:
            self._drop(start_id, ours)
            raise Refused(error.errno or 0, "fifo") from error
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return pid, (ours[0], ours[1])

    def remove(self, start_id: str) -> None:
        """The run has ended: its FIFOs go."""
        for path in self.paths(start_id):
            try:
                os.unlink(path)
            except OSError:
                continue

    def _drop(self, start_id: str, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        self.remove(start_id)

    def _fifo(self, path: str, ours: list[int], theirs: list[int]) -> None:
        """Both ends read-write: neither side ever meets an end of file or a broken pipe."""
        os.mkfifo(path, 0o600)
        ours.append(self.high(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)))
        theirs.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def high(self, descriptor: int) -> int:
        """Out of the low numbers, which a start needs while the tasks' own limit is in force."""
        low = self._given[0]
        if not self._raised or descriptor < low // 2:
            return descriptor
        high: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, low)
        os.close(descriptor)
        return high

    def _exec(self, argv: list[str], env: dict[str, str], cwd: str, theirs: list[int]) -> int:
        """Limits are inherited, and setting them in the child would cost vfork (20 times slower):
        so for the moment of the start they are those of the tasks."""
        if self._raised:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._given)
        try:
            child = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=self._null,
                stdout=theirs[0],
                stderr=theirs[1],
                start_new_session=True,
                close_fds=False,  # all of ours are close-on-exec
            )
        except OSError as error:
            stage = "cwd" if error.filename == cwd != argv[0] else "exec"
            raise Refused(error.errno or 0, stage) from error
        except (ValueError, TypeError) as error:  # a NUL, or an "=" in a name
            raise Refused(22, "exec") from error
        finally:
            if self._raised:
                resource.setrlimit(resource.RLIMIT_NOFILE, self._ours)
        child.returncode = 0  # or subprocess would wait for it behind our back
        return child.pid
