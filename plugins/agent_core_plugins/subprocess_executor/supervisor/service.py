"""The supervisor's life: one loop over its socket, its children and their output."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import struct
import sys
import time
import traceback

from . import signals
from .journal import VERSION, Journal, plain
from .runs import Runs
from .spawn import Spawner

IDLE = 60.0  # seconds without a run and without an agent, after which a supervisor leaves
LOOK_AGAIN = 0.02  # seconds between two looks at a tree that is being killed
LINE_LIMIT = 8 * 1024 * 1024  # bytes of one request
INBOX = 65536  # bytes that are read at once
OWED_LIMIT = 16 * 1024 * 1024  # bytes that an agent may leave unread before it is hung up on
GUESTS = 16  # connections that have not said hello
PR_SET_CHILD_SUBREAPER = 36
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .journal import Line


class Connection:
    """One agent's end of the socket."""

    __slots__ = ("blocked", "env", "greeted", "number", "owed", "received", "socket")

    def __init__(self, peer: socket.socket, number: int) -> None:
        self.socket = peer
        self.number = number
        self.greeted = False
        self.env: dict[str, str] = {}  # of every start, below the start's own
        self.blocked = False  # until it has read some of what it is owed
        self.received = bytearray()
        self.owed = bytearray()


class Service:
    """One supervisor."""

    def __init__(self, directory: str, listener: socket.socket, idle: float) -> None:
        self._idle = idle
        self._epoll = select.epoll()
        self._listener = listener
        self._wakeup = signals.watch()
        self._connections: dict[int, Connection] = {}
        self._agent: Connection | None = None
        self._accepted = 0
        self._hurry = False  # somebody waits for what is owed
        self._inbox = memoryview(bytearray(INBOX))
        self._journal = Journal(os.path.join(directory, "journal"))
        self._runs = Runs(
            self._journal, Spawner(os.path.join(directory, "f")), self._epoll, self._tell
        )
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wakeup.fileno(), select.EPOLLIN)
        self._idle_since = time.monotonic()

    def run(self) -> None:
        """Until nothing runs and no agent has been connected for a while."""
        while True:
            for descriptor, events in self._epoll.poll(self._patience()):
                try:
                    self._happened(descriptor, events)
                except Exception:  # one event's trouble must not end everybody's runs
                    _complain()
            if self._runs.ending():
                self._runs.look()
            if self._runs.patience() == 0.0:
                self._runs.settle()
            self._flush()
            if self._over():
                return

    def _patience(self) -> float | None:
        young = self._runs.patience()
        if self._runs.ending():
            return LOOK_AGAIN if young is None else min(young, LOOK_AGAIN)
        if young is not None:
            return young
        if self._agent is None and not self._runs.busy():
            return max(0.0, self._idle_since + self._idle - time.monotonic())
        return None

    def _over(self) -> bool:
        if self._agent is not None or self._runs.busy():
            self._idle_since = time.monotonic()
            return False
        return time.monotonic() >= self._idle_since + self._idle

    def _happened(self, descriptor: int, events: int) -> None:
        if descriptor == self._wakeup.fileno():
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(4096)
            self._runs.reap()
        elif descriptor == self._listener.fileno():
            self._accept()
        elif descriptor in self._connections:
            self._converse(self._connections[descriptor], events)
        elif self._runs.has(descriptor):
            self._runs.output(descriptor)

    # --- the socket

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        user = struct.unpack("3i", credentials)[1]
        if user != os.geteuid() or len(self._connections) >= GUESTS:
            peer.close()
            return
        peer.setblocking(False)
        self._accepted += 1
        self._connections[peer.fileno()] = Connection(peer, self._accepted)
        self._epoll.register(peer.fileno(), select.EPOLLIN)

    def _converse(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self._send(connection)
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            size = connection.socket.recv_into(self._inbox)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._hang_up(connection)
            return
        data = bytes(self._inbox[:size])
        if b"\n" in data:
            *lines, rest = (bytes(connection.received) + data).split(b"\n")
            connection.received = bytearray(rest)
            for line in lines:
                if connection.socket.fileno() < 0:
                    return
                self._request(connection, line)
        else:
            connection.received += data
        if len(connection.received) > LINE_LIMIT:
            self._hang_up(connection)

    def _request(self, connection: Connection, raw: bytes) -> None:
        """Carry out one line; one that makes no sense ends its connection, nothing else."""
        try:
            asked = json.loads(raw)
            kind = asked["t"]
            if kind == "hello":
                self._hello(connection, asked)
            elif not connection.greeted:
                self._hang_up(connection)
            elif kind == "start":
                self._start(connection, asked)
            elif kind == "begin":
                self._runs.begin(asked["s"])
            elif kind == "recall":
                self._runs.recall(asked["s"])
            elif kind == "ping":
                self._tell('"t":"pong"', True)
            elif kind == "forget":
                self._runs.forget(asked["s"])
            elif kind == "signal":
                number = int(asked["n"])
                mark = json.dumps(str(asked["mark"])) if "mark" in asked else ""
                done = self._runs.signal(asked["s"], int(asked["signal"]), mark)
                self._tell(f'"t":"signalled","n":{number},"done":{json.dumps(done)}', True)
        except Exception:
            _complain()
            self._hang_up(connection)

    def _start(self, connection: Connection, asked: Line) -> None:
        """Now, or when a run before it has ended."""
        _check(asked)
        self._runs.write_again()
        begin = self._runs.hand_over if "until" in asked else self._runs.start
        begin(asked, {**connection.env, **asked["env"]})

    def _hello(self, connection: Connection, said: Line) -> None:
        """From now on this is the agent: what an older one has sent and we not read never counts.

        Its request could otherwise start a task that the new one has booked as never begun.
        """
        for other in tuple(self._connections.values()):
            if other.number < connection.number:
                self._hang_up(other)
        self._runs.abandon()
        self._runs.settle()  # told to nobody: the hello's answer tells of them
        connection.greeted = True
        connection.env = dict(said.get("env", {}))
        self._agent = connection
        journal_id = json.dumps(self._journal.journal_id)
        self._tell(
            f'"t":"hello","v":{VERSION},"journal":{journal_id},"pid":{os.getpid()},'
            f'"ahead":true,"runs":[{self._runs.all()}]',
            True,
        )

    def _tell(self, line: str, soon: bool) -> None:
        """Put a line on its way to the agent, given as the members of a JSON object.

        Without an agent it waits for the next hello's answer; one that is not told soon, for the
        next that is.
        """
        self._hurry = self._hurry or soon
        if self._agent is not None:
            self._agent.owed += b"{%s}\n" % line.encode("ascii")

    def _flush(self) -> None:
        if self._agent is not None and self._agent.owed and self._hurry:
            self._hurry = False
            self._send(self._agent)

    def _send(self, connection: Connection) -> None:
        try:
            while connection.owed:
                sent = connection.socket.send(connection.owed)
                del connection.owed[:sent]
        except BlockingIOError:
            if len(connection.owed) > OWED_LIMIT:
                self._hang_up(connection)
            elif not connection.blocked:
                connection.blocked = True
                self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            self._hang_up(connection)
        else:
            if connection.blocked:
                connection.blocked = False
                self._epoll.modify(connection.socket.fileno(), select.EPOLLIN)

    def _hang_up(self, connection: Connection) -> None:
        descriptor = connection.socket.fileno()
        if descriptor >= 0:
            del self._connections[descriptor]
            connection.socket.close()
        if self._agent is connection:
            self._agent = None
            self._runs.abandon()


def _check(asked: Line) -> None:
    """A start must have the form that the agent gives it."""
    argv, out = asked["argv"], asked["out"]
    lists = type(argv) is list and argv and type(out) is list and len(out) == 2
    sound = lists and type(asked["env"]) is dict
    named = (asked["cwd"], argv[0], asked.get("file", ""), *out)
    texts = all(type(text) is str for text in named)
    numbers = type(asked["cap"]) is int and type(asked.get("until", 0.0)) is float
    if not sound or not texts or not numbers or not plain(asked["s"]):
        raise ValueError("a start that cannot be read")  # exec looks at the other texts


_complaints = 0


def _complain() -> None:
    """Tracebacks go to the log in the runtime directory; a few tell as much as many."""
    global _complaints  # noqa: PLW0603
    _complaints += 1
    if _complaints <= 100:
        with contextlib.suppress(OSError):
            traceback.print_exc()


def main(arguments: list[str]) -> None:
    """Become a supervisor: leave the agent's session and family, then serve."""
    directory, descriptor = arguments[0], int(arguments[1])
    idle = float(arguments[2]) if len(arguments) > 2 else IDLE
    if os.fork():
        os._exit(0)  # the agent waits for this one; the supervisor is nobody's child
    os.setsid()
    os.chdir("/")
    os.set_inheritable(descriptor, False)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    try:
        Service(directory, listener, idle).run()
    except BaseException:
        _complain()
        sys.exit(1)
