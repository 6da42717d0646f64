"""The signals that a supervisor gets."""

from __future__ import annotations

import signal
import socket


def watch() -> socket.socket:
    """Nothing ends a supervisor but its own decision and KILL. Readable when a child ended.

    Every handler is an empty function, never SIG_IGN: what is ignored would be ignored by the
    tasks too, while handlers are reset by exec.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    for signum in signal.valid_signals():
        ignored = signal.getsignal(signum) is signal.SIG_IGN
        if ignored or signum in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, _nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    return ours


def _nothing(signum: int, frame: object) -> None:
    return
