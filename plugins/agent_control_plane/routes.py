"""The route table: every endpoint with its token, its models and what it does."""

from collections.abc import Callable

from starlette.requests import Request

from agent_control_plane import agents, answers, event_schemas, schemas
from agent_control_plane.descriptions import Description
from agent_control_plane.handlers import AgentCalls, Handler, UserCalls
from agent_control_plane.plane import Plane
from agent_core.api.http import Call, Endpoint, Problem, Reply, Tokens, bearer
from agent_core.api.wire import AGENT_BODY_LIMIT, USER_BODY_LIMIT, Code, Word

API = "/api/v1"
_OF_ATTEMPT = (Code.ATTEMPT_LOST, Code.TASK_FINAL)


def endpoints(plane: Plane) -> list[Endpoint]:
    """Every row; the app and the document are made of these."""
    return [*_agent_routes(plane), *_user_routes(plane), _health(plane)]


def _health(plane: Plane) -> Endpoint:
    async def handler(_call: Call) -> Reply:
        await plane.healthy()
        return Reply(data={"status": "ok"})

    return Endpoint(
        method="GET",
        path="/health",
        handler=handler,
        summary="Whether the server can read its database.",
        guard=lambda _request: None,
        answer=answers.Ok,
    )


def _agent_routes(plane: Plane) -> list[Endpoint]:
    calls = AgentCalls(plane)
    guard = _guard(plane, "agent")

    def row(
        path: str,
        handler: Handler,
        summary: str,
        models: tuple[type[schemas.FromAgent], type[answers.Answered]],
        refusals: tuple[Code, ...] = (),
    ) -> Endpoint:
        return Endpoint(
            method="POST",
            path=f"{API}/agent/{path}",
            handler=handler,
            summary=summary,
            guard=guard,
            schemes=("agentToken", "agentBearer"),
            tag="agents",
            body=models[0],
            body_limit=AGENT_BODY_LIMIT,
            answer=models[1],
            headers=("X-Agent-Protocol",),
            refusals=refusals,
        )

    say = calls.of_attempt
    spoken = {
        Word.EVENTS: [
            row("events", calls.events, "What happened to many attempts, an answer for each.",
                (event_schemas.Events, answers.EventsTaken), (Code.TOO_LARGE,)),
        ],
        Word.LOGS: [
            row("tasks/{id}/log", calls.log, "What a run wrote, while it runs.",
                (schemas.LogCall, answers.Logged), (*_OF_ATTEMPT, Code.TOO_LARGE)),
        ],
    }  # fmt: skip
    return [
        *(each for word in Word if word in plane.words for each in spoken.get(word, ())),
        row("register", calls.register, "Say who you are; learn the server's terms.",
            (schemas.Register, answers.Registered)),
        row("heartbeat", calls.heartbeat, "Say that you live, and how busy the machine is.",
            (schemas.Heartbeat, answers.Heard)),
        row("tasks/claim", calls.claim, "Be granted waiting tasks, each under a lease.",
            (schemas.Claim, answers.Claimed)),
        row("tasks/{id}/start", say(agents.start), "The run began.",
            (schemas.StartCall, answers.Started), (*_OF_ATTEMPT, Code.LEASE_OVER)),
        row("tasks/{id}/lease/renew", say(agents.renew), "Hold it longer.",
            (schemas.RenewCall, answers.Renewed), _OF_ATTEMPT),
        row("tasks/{id}/progress", say(agents.progress), "How far it is.",
            (schemas.ProgressCall, answers.Progressed), _OF_ATTEMPT),
        row("tasks/{id}/complete", say(agents.complete), "How it ended.",
            (schemas.CompleteCall, answers.Moved), _OF_ATTEMPT),
        row("tasks/{id}/release", say(agents.release), "Give back what has not begun.",
            (schemas.ReleaseCall, answers.Moved), (*_OF_ATTEMPT, Code.CONFLICT)),
    ]  # fmt: skip


def _user_routes(plane: Plane) -> list[Endpoint]:
    calls = UserCalls(plane)
    guard = _guard(plane, "user")

    def row(
        method: str,
        path: str,
        handler: Handler,
        summary: str,
        *,
        answer: type[answers.Answered] = answers.TaskDetail,
        body: type[schemas.FromUser] | None = None,
        refusals: tuple[Code, ...] = (),
        query: type[schemas.FromUser] | None = schemas.Nothing,
        status: int = 200,
    ) -> Endpoint:
        return Endpoint(
            method=method,
            path=f"{API}/tasks{path}",
            handler=handler,
            summary=summary,
            guard=guard,
            schemes=("userToken",),
            tag="users",
            body=body,
            body_optional=body in (schemas.CancelCall, schemas.Nothing),
            body_limit=USER_BODY_LIMIT,
            query=query,
            answer=answer,
            status=status,
            headers=("Idempotency-Key",) if status == 201 else (),
            refusals=refusals,
        )

    conflict, final = Code.CONFLICT, Code.TASK_FINAL
    return [
        row("POST", "", calls.submit, "Submit a task.",
            body=Description, refusals=(conflict,), status=201),
        row("GET", "", calls.listed, "Tasks, newest first.",
            query=schemas.ListQuery, answer=answers.TaskPage),
        row("GET", "/{id}", calls.look, "One task, its result and its runs."),
        row("PUT", "/{id}", calls.describe, "Describe anew a task that nobody holds.",
            body=Description, refusals=(conflict, final)),
        row("DELETE", "/{id}", calls.remove, "Remove a task that nobody holds.",
            answer=answers.Deleted, refusals=(conflict,)),
        row("POST", "/{id}/cancel", calls.cancel, "End it, wherever it stands.",
            body=schemas.CancelCall, refusals=(final,)),
        row("POST", "/{id}/retry", calls.retry, "A new task like a final one.",
            body=schemas.Nothing, refusals=(conflict,), status=201),
        row("GET", "/{id}/explain", calls.explain, "Why it is where it is, machine by machine.",
            answer=answers.Explained),
        row("GET", "/{id}/logs", calls.output, "A piece of what a run wrote.",
            query=schemas.LogsQuery, answer=answers.LogPiece),
    ]  # fmt: skip


def _guard(plane: Plane, kind: str) -> Callable[[Request], None]:
    """Refuses whoever does not carry this kind of token."""
    both = {
        "agent": Tokens(plane.settings.agent_token),
        "user": Tokens(plane.settings.user_token),
    }
    other = "user" if kind == "agent" else "agent"
    how = "X-Agent-Token: TOKEN or " if kind == "agent" else ""

    def guard(request: Request) -> None:
        given = request.headers.get("x-agent-token", "") if kind == "agent" else ""
        given = given or bearer(request)
        if both[kind].match(given):
            return
        if both[other].match(given):
            raise Problem(
                Code.NOT_AUTHORISED,
                f"this is the {other} token; these routes take the {kind} token",
                status=403,
            )
        what = "the token is wrong" if given else "a token is missing"
        raise Problem(
            Code.NOT_AUTHORISED,
            f"{what}; send {how}Authorization: Bearer TOKEN with the server's {kind}_token",
            headers={"WWW-Authenticate": "Bearer"},
        )

    return guard
