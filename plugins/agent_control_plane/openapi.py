"""The control plane's OpenAPI document."""

from collections.abc import Sequence

from agent_core import __version__
from agent_core.api.http import Endpoint
from agent_core.api.openapi import document
from agent_core.api.wire import Json

SCHEMES = {
    "agentToken": {"type": "apiKey", "in": "header", "name": "X-Agent-Token"},
    "agentBearer": {"type": "http", "scheme": "bearer", "description": "the agent token"},
    "userToken": {"type": "http", "scheme": "bearer", "description": "the user token"},
}


def openapi(table: Sequence[Endpoint]) -> dict[str, Json]:
    return document(
        table, title="remotegpu control plane", version=__version__, schemes=dict(SCHEMES)
    )
