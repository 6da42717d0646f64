"""A relay between an agent and its server: it can be cut, and it sees every call."""

import asyncio
import json
import re
import threading
from collections.abc import Callable

REQUEST = re.compile(rb"(?:POST|GET) /api/v1/agent/(\S+) HTTP/1\.1\r\n")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CHUNK = 2**16


class Relay:
    """Runs in a thread of its own. `calls` are the calls that reached the server, in order.

    There, what a batch of events holds counts as the single calls that it stands for; `requests`
    are those that were made.
    """

    def __init__(self, server_port: int) -> None:
        self.calls: list[str] = []
        self.requests: list[str] = []
        # Told "asked" or "answered" and the call, before it is passed on; False: it is lost.
        self.watch: Callable[[str, str], bool | None] | None = None
        self.port = 0
        self.server_port = server_port
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()
        assert self._ready.wait(30), "the relay listens"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """From now on the agent reaches nobody, and what is in flight is lost."""
        self._cut = True
        self._in_loop(self._drop_all)

    def turn(self, server_port: int) -> None:
        """From now on what connects reaches another server, as behind a balancer."""
        self.server_port = server_port

    def mend(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    # --- in its thread

    def _in_loop(self, what: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (what(), done.set()))
        assert done.wait(30), "the relay's thread lives"

    def _drop_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._meet, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        jobs = asyncio.all_tasks(self._loop)
        for job in jobs:
            job.cancel()
        self._loop.run_until_complete(asyncio.gather(*jobs, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # transports close in the next turn
        self._loop.close()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there = None
        try:
            if self._cut:
                return
            reader_there, there = await asyncio.open_connection("127.0.0.1", self.server_port)
            self._writers.add(there)
            asked: list[str] = []
            await asyncio.gather(
                self._ask(reader, there, asked), self._answer(reader_there, writer, asked)
            )
        except OSError:
            pass  # either side is gone, and so is the other now
        finally:
            for each in (writer, there):
                if each is not None:
                    each.transport.abort()
                    self._writers.discard(each)

    async def _ask(
        self, reader: asyncio.StreamReader, there: asyncio.StreamWriter, asked: list[str]
    ) -> None:
        while data := await reader.read(CHUNK):
            # An HTTP client sends a request's head in one piece, after the last answer came.
            if found := REQUEST.match(data):
                call = found[1].decode()
                asked.append(call)
                calls = [call]
                if call == "events":
                    data = await _whole(reader, data)
                    calls = _stand_for(data)
                for each in dict.fromkeys((call, *calls)):
                    self._tell("asked", each)  # what is lost here has not reached the server
                self.calls += calls
                self.requests.append(call)
            there.write(data)
            await there.drain()
        raise ConnectionResetError("the agent hung up")

    async def _answer(
        self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[str]
    ) -> None:
        while data := await there.read(CHUNK):
            if asked:
                self._tell("answered", asked.pop())
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("the server hung up")

    def _tell(self, when: str, call: str) -> None:
        if self.watch is not None and self.watch(when, call) is False:
            raise ConnectionResetError("this call is to be lost")


async def _whole(reader: asyncio.StreamReader, data: bytes) -> bytes:
    """A request with all of its body."""
    found = LENGTH.search(data)
    assert found, "an agent tells how long its request is"
    missing = data.index(b"\r\n\r\n") + 4 + int(found[1]) - len(data)
    try:
        return data + await reader.readexactly(missing) if missing > 0 else data
    except asyncio.IncompleteReadError:
        raise ConnectionResetError("the agent died while it asked") from None


def _stand_for(request: bytes) -> list[str]:
    _, _, body = request.partition(b"\r\n\r\n")
    verbs = {"renew": "lease/renew"}
    return [
        f"tasks/{event['task_id']}/{verbs.get(event['kind'], event['kind'])}"
        for event in json.loads(body)["events"]
        if "task_id" in event
    ]
