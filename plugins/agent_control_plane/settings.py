"""The table [server]: where the control plane listens, what it keeps and on which terms."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from agent_control_plane.states import Terms
from agent_core.api.wire import Word
from agent_core.sections import Duration, SecretText, Section, Text


def _whole(seconds: float) -> float:
    if not seconds.is_integer():
        raise ValueError("whole seconds are needed: agents are told them as an integer")
    return seconds


WholeDuration = Annotated[Duration, AfterValidator(_whole)]


def default_database() -> str:
    """In the system's state directory where that is ours, else in the user's."""
    system = Path("/var/lib/remotegpu-server")
    nearest = next(place for place in (system, *system.parents) if place.is_dir())
    ours = os.geteuid() == 0 and os.access(nearest, os.W_OK)
    place = system if ours else Path("~/.local/share/remotegpu-server").expanduser()
    return f"sqlite:///{place}/server.db"


class ServerSettings(Section):
    """The control plane."""

    host: Text = Field("127.0.0.1", min_length=1)
    """The address to listen on; 0.0.0.0 for every one. Put TLS in front of it by a proxy."""
    port: int = Field(8080, ge=0, le=65535)
    """0 = one that is free."""
    database: Text = Field(default_factory=default_database, min_length=1)
    """sqlite:////absolute/path/server.db, or postgresql://user:password@host/database."""
    agent_token: SecretText = ""
    """What agents must carry; the server does not start without it."""
    user_token: SecretText = ""
    """What users must carry; another one than agent_token."""
    lease_sec: WholeDuration = Field(300.0, ge=1, le=86400 * 7)
    """How long an agent holds a task without another word."""
    disconnect_grace: WholeDuration = Field(600.0)
    """How long after its lease a task still waits for its agent, unless the task says otherwise."""
    max_attempts: int = Field(3, ge=1, le=1000)
    """Attempts that began and whose leases ran out, before the task fails."""
    older_agent_workers: int = Field(2, ge=1, le=1000)
    """Tasks at once for an older agent that does not register its max_workers."""
    max_queue: int = Field(100_000, ge=1, le=10_000_000)
    """Tasks that are not final; more are refused until some have ended."""

    output_kept: int = Field(16 * 2**20, ge=64 * 1024, le=2**30)
    """Bytes kept of each stream that a running task sends: half from its beginning, half from its
    end."""
    extensions: tuple[Word, ...] = Field(tuple(Word))
    """Words of the protocol that agents may use: events, wait, commands, logs."""

    def terms(self) -> Terms:
        return Terms(
            lease_sec=self.lease_sec,
            disconnect_grace=self.disconnect_grace,
            max_attempts=self.max_attempts,
        )
