"""The one place that speaks HTTP to the server: a call, its bounded answer, what that is worth."""

import asyncio
import json
import math
import os
import urllib.request
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from agent_core import Clock, Code, Instant, Json, SettingsError, Unreachable, wire

KEEP_ALIVE = 60.0  # seconds that an idle connection is kept
CONNECTIONS = 16  # at most; eight reports, a claim, and what runs beside the work
DEADLINE = 10  # times the timeout: a whole call, however slowly its answer trickles in
_STALE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class Reply(NamedTuple):
    """An answer that is one: a business code, what it says, and when its request was sent."""

    code: int
    message: str
    data: Json
    sent: Instant
    retry_after: float | None = None  # seconds, if the server named them


class Server:
    """Calls of one server with one token; kept-alive connections, no redirects followed."""

    def __init__(self, *, url: str, token: str, timeout: float, clock: Clock) -> None:
        self._url = url
        self._timeout = timeout
        self._clock = clock
        headers = {
            "X-Agent-Protocol": str(wire.PROTOCOL_VERSION),
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # a small packed answer could unpack to gigabytes
        }
        if token:
            headers |= {"X-Agent-Token": token, "Authorization": f"Bearer {token}"}
        self._client = _client(url, headers, timeout)

    async def call(self, path: str, body: Json, patience: float = 0.0) -> Reply:
        """POST and judge; bytes are JSON already. Raises Unreachable for what is no answer.

        The server has `patience` seconds more than usual before it begins to answer.
        """
        content = body if isinstance(body, bytes) else encode(body)
        read = self._timeout + patience
        deadline = DEADLINE * self._timeout + patience
        sent = Instant.now(self._clock)
        try:
            async with asyncio.timeout(deadline):
                response, raw = await self._exchange(path, content, read)
        except TimeoutError:
            raise Unreachable(f"no whole answer within {deadline:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise Unreachable(_words(error, read)) from error
        except RuntimeError as error:
            if not self._client.is_closed:
                raise
            raise Unreachable("the agent is stopping") from error
        return judge(response.status_code, raw, _retry_after(response), sent)

    async def close(self) -> None:
        await self._client.aclose()

    async def _exchange(
        self, path: str, content: bytes, read: float
    ) -> tuple[httpx.Response, bytes]:
        try:
            response = await self._send(path, content, read)
        except _STALE:
            # The server may close a kept connection at the very moment we use it again. Each call
            # may be repeated, so once is free; a second failure is an outage.
            response = await self._send(path, content, read)
        try:
            return response, await _read(response)
        finally:
            await response.aclose()

    async def _send(self, path: str, content: bytes, read: float) -> httpx.Response:
        request = self._client.build_request(
            "POST",
            self._url + path,
            content=content,
            timeout=httpx.Timeout(self._timeout, read=read),
        )
        return await self._client.send(request, stream=True)


def _client(url: str, headers: dict[str, str], timeout: float) -> httpx.AsyncClient:
    parts = urlsplit(url)
    host = parts.hostname or ""
    loopback = host in {"", "localhost", "::1"} or host.startswith("127.")
    try:
        return httpx.AsyncClient(
            headers=headers,
            timeout=timeout,
            follow_redirects=False,
            trust_env=not loopback,  # a proxy has another loopback
            # Certificates cost 40 ms and a megabyte; over plain http there is nothing to verify,
            # unless the way to a proxy is.
            verify=parts.scheme == "https" or (not loopback and bool(urllib.request.getproxies())),
            limits=httpx.Limits(
                max_connections=CONNECTIONS,
                max_keepalive_connections=CONNECTIONS,
                keepalive_expiry=KEEP_ALIVE,
            ),
        )
    except (ValueError, OSError, ImportError) as error:
        raise SettingsError(
            f"no connection to {url} can be prepared: {error}; look at HTTP_PROXY, HTTPS_PROXY, "
            "ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR in the agent's environment"
        ) from error


def encode(body: Json) -> bytes:
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def judge(status: int, raw: bytes, retry_after: float | None, sent: Instant) -> Reply:
    """What an answer is worth: by its body's code first, by its HTTP status second."""
    body = decode(raw)
    code = body.get("code") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(code, int) or isinstance(code, bool):
        if status in {404, 405}:
            return Reply(Code.NO_ROUTE, f"HTTP {status}: no such route", None, sent, retry_after)
        if status == 413:  # of a proxy with a limit of its own
            return Reply(Code.TOO_LARGE, "HTTP 413: body too large", None, sent, retry_after)
        raise Unreachable(_no_answer(status, raw), retry_after=retry_after)
    if code == Code.OK and not 200 <= status < 300:
        raise Unreachable(f"code 0 with HTTP {status}: no success", retry_after=retry_after)
    if code == 401:  # gin's word for it
        code = Code.NOT_AUTHORISED
    message = body.get("message") or body.get("msg") or ""
    return Reply(int(code), str(message)[:500], body.get("data"), sent, retry_after)


def decode(raw: bytes) -> Json:
    """JSON as Python, with numbers that no number can hold as null; None if it is no JSON."""
    try:
        return json.loads(raw, parse_float=_finite, parse_int=_integer, parse_constant=_nothing)
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _integer(text: str) -> int | None:
    return int(text) if len(text) <= 20 else None


def _nothing(_text: str) -> None:
    return None


async def _read(response: httpx.Response) -> bytes:
    raw = bytearray()
    async for chunk in response.aiter_raw():
        raw += chunk
        if len(raw) > wire.AGENT_BODY_LIMIT:
            raise Unreachable(f"an answer of more than {wire.AGENT_BODY_LIMIT} bytes")
    return bytes(raw)


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    usable = text.isascii() and text.isdigit() and len(text) < 10
    return float(min(int(text), 3600)) if usable else None


def _no_answer(status: int, raw: bytes) -> str:
    if 300 <= status < 400:
        return f"HTTP {status}, a redirect: set server_client.url to the server's real address"
    start = raw[:60].decode("utf-8", "replace").replace("\n", " ").strip()
    return f"HTTP {status} with {start!r}: not an answer of a control plane"


def _words(error: Exception, timeout: float) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {timeout:g} s"
    if isinstance(error, httpx.RemoteProtocolError):
        return "its answer was cut off, or is no HTTP"
    cause: BaseException | None = error
    while cause is not None:  # httpx says only that "all connection attempts failed"
        if isinstance(cause, OSError) and cause.errno and cause.strerror:
            # asyncio's own words name only the address; a resolver's numbers are negative.
            return os.strerror(cause.errno) if cause.errno > 0 else cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
