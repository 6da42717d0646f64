"""One connection of an HTTP server: uvicorn's, with an end to what a stranger may have it hold."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT: Final = 64 * 1024  # bytes of a request's line and headers
HEAD_TIME: Final = 75.0  # seconds for them, also for the first byte of a connection


class Connection(HttpToolsProtocol):
    """uvicorn's parser has no limit to a head: without a token it would be fed until memory ends.

    What is read at once is counted only with the next piece, so a little more may be taken.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._unparsed = 0  # bytes since a request or a piece of its body began
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._unparsed = 0
        self._wait_for_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > HEAD_LIMIT and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.send_400_response(f"line and headers are longer than {HEAD_LIMIT} bytes")
            else:
                self.transport.abort()

    def _unsupported_upgrade_warning(self) -> None:
        """It would tell whoever reads the log to install what is not wanted."""

    def _wait_for_head(self) -> None:
        self._head_came()
        self._late = self.loop.call_later(HEAD_TIME, self.transport.close)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
