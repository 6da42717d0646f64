"""The users' client: every user endpoint of the control plane as one method."""

import json
import re
import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import httpx

from agent_core.api.replies import (
    Log,
    NotOurs,
    Page,
    Reason,
    Task,
    judge,
    no_answer,
    read_log,
    read_object,
    read_reasons,
    read_task,
)
from agent_core.api.wire import Code, Json
from agent_core.errors import Refused, SettingsError, Unreachable

TIMEOUT: Final = 30.0  # seconds, for each step of a request
ANSWER_LIMIT: Final = 64 * 2**20  # bytes of one answer; a task's output is at most 2 × 16 MiB
PAGE_LIMIT: Final = 200  # tasks in one answer
RETRY_DELAYS: Final = (0.2, 0.5, 1.0, 2.0)  # seconds between the tries of one submit
_ID: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._~:@-]{1,255}\Z")
_KEY: Final = re.compile(r"[!-~]([ -~]{0,253}[!-~])?\Z")


def passing(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, Refused):
        return error.business_code in (Code.FULL, Code.INTERNAL)
    return isinstance(error, Unreachable) and not isinstance(error, NotOurs)


class Client:
    """A connection to one control plane; use it as a context manager."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = TIMEOUT,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._sleep = sleep
        self._http = _transport(self._url, token, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, fields: Mapping[str, Json], *, key: str | None = None) -> Task:
        """A new task. A lost answer is asked for again under the same key: never two tasks."""
        return self._create("/api/v1/tasks", fields, key)

    def retry(self, task_id: str, *, key: str | None = None) -> Task:
        """A new task like a final one, with that one as its parent."""
        return self._create(_path(task_id, "/retry"), {}, key)

    def tasks(
        self,
        *,
        statuses: Sequence[str] = (),
        machine: str = "",
        name: str = "",
        user: str = "",
        after: str = "",
        limit: int = PAGE_LIMIT,
    ) -> Page:
        """One page of tasks without their output; `name` is a prefix."""
        query: list[tuple[str, str | int]] = [("status", status) for status in statuses]
        pairs = (("machine", machine), ("name", name), ("user", user), ("after", after))
        query += [(key, value) for key, value in pairs if value]
        query.append(("limit", min(limit, PAGE_LIMIT)))
        data = read_object(self._call("GET", "/api/v1/tasks", query=query), "a list of tasks")
        tasks, cursor = data.get("tasks"), data.get("next_cursor")
        if not isinstance(tasks, list) or not isinstance(cursor, str | None):
            raise no_answer("a list of tasks")
        return Page(tasks=[read_task(task) for task in tasks], next_cursor=cursor)

    def task(self, task_id: str, *, timeout: float | None = None) -> Task:
        """One task with its result and its runs. `timeout` may be shorter than the client's."""
        return read_task(self._call("GET", _path(task_id), timeout=timeout))

    def explain(self, task_id: str) -> Sequence[Reason]:
        """Why it does not run, machine by machine."""
        answer = self._call("GET", _path(task_id, "/explain"))
        return read_reasons(read_object(answer, "an explanation"))

    def replace(self, task_id: str, fields: Mapping[str, Json]) -> Task:
        """Describe a task anew, while nobody holds it."""
        return read_task(self._call("PUT", _path(task_id), body=fields))

    def delete(self, task_id: str) -> None:
        """Remove a final task, or a waiting one that nothing depends on."""
        self._call("DELETE", _path(task_id))

    def cancel(self, task_id: str, *, reason: str = "") -> Task:
        """Cancelled at once, or with cancel_requested_at while a machine holds it."""
        body = {"reason": reason} if reason else {}
        return read_task(self._call("POST", _path(task_id, "/cancel"), body=body))

    def logs(
        self,
        task_id: str,
        *,
        stream: str,
        run: int | None = None,
        offset: int = 0,
        wait_sec: int = 0,
    ) -> Log:
        """A piece of one stream of one run (none named: the last), from `offset` on.

        With `wait_sec` the server answers when there is more, or when that time is up.
        """
        query: list[tuple[str, str | int]] = [("stream", stream), ("offset", offset)]
        if run is not None:
            query.append(("run", run))
        if wait_sec:
            query.append(("wait_sec", wait_sec))
        answer = self._call(
            "GET", _path(task_id, "/logs"), query=query, timeout=self._timeout + wait_sec
        )
        return read_log(read_object(answer, "a piece of output"), offset)

    def _create(self, path: str, body: Mapping[str, Json], key: str | None) -> Task:
        key = uuid.uuid4().hex if key is None else key
        if not _KEY.match(key):
            raise Refused("an idempotency key is 1 to 255 printable ASCII characters", Code.INVALID)
        for delay in RETRY_DELAYS:
            try:
                return read_task(self._call("POST", path, body=body, key=key))
            except (Refused, Unreachable) as error:
                if not passing(error):
                    raise
                self._sleep(max(delay, min(getattr(error, "retry_after", None) or 0.0, 10.0)))
        return read_task(self._call("POST", path, body=body, key=key))

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Iterable[tuple[str, str | int]] = (),
        body: Mapping[str, Json] | None = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Json:
        timeout = self._timeout if timeout is None else timeout
        headers = {} if key is None else {"Idempotency-Key": key}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        try:
            with self._http.stream(
                method,
                self._url + path,
                params=list(query) or None,
                content=content,
                headers=headers,
                timeout=timeout,
            ) as response:
                return judge(response, self._read(response, 4 * timeout))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise Unreachable(
                f"cannot reach {self._url}: {_cause(error)}; see that the control plane runs, and "
                "that this is its address"
            ) from error

    def _read(self, response: httpx.Response, limit: float) -> bytes:
        """The whole body; one that is endless, or drips for longer than `limit`, is given up."""
        deadline = time.monotonic() + limit
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > ANSWER_LIMIT or time.monotonic() > deadline:
                raise Unreachable(f"{self._url} sent an answer that does not end")
        return bytes(body)


def _transport(url: str, token: str, timeout: float) -> httpx.Client:
    """Raises SettingsError if proxy or certificates of the environment cannot be used."""
    address = urlsplit(url)
    # Without TLS a bare context: loading the certificates of all authorities takes 40 ms.
    verify = True if address.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return httpx.Client(
            verify=verify,
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            timeout=timeout,
            follow_redirects=False,  # a redirect could carry the token elsewhere
            trust_env=not _loopback(address.hostname or ""),  # a proxy has another loopback
        )
    except (ValueError, OSError, ImportError) as error:
        raise SettingsError(
            f"no connection can be prepared: {error}; look at HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, "
            "SSL_CERT_FILE and SSL_CERT_DIR in the environment"
        ) from error


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _path(task_id: str, rest: str = "") -> str:
    """The address of a task; an id that could be read as another address is no task's."""
    if not _ID.match(task_id):
        raise Refused(f"there is no task {task_id!r}", Code.NO_SUCH_TASK)
    return f"/api/v1/tasks/{task_id}{rest}"


def _cause(error: Exception) -> str:
    words = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        words = "no answer in time"
    if isinstance(error, httpx.RemoteProtocolError):
        words = "its answer was cut off, or is no HTTP"
    return re.sub(r"^\[Errno -?\d+\] ", "", words)
