"""From a supervisor's directory to a link that has greeted it."""

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from .link import Link, Strange

NO_ENV: Mapping[str, str] = MappingProxyType({})


async def connect(directory: Path, journal_id: str, env: Mapping[str, str] = NO_ENV) -> Link:
    """Connect to the supervisor of a directory and greet it.

    Raises ConnectionRefusedError or FileNotFoundError if there is none, and LinkLost, TimeoutError
    or Strange if there is one that does not answer as it should.
    """
    loop = asyncio.get_running_loop()
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # A unix socket's connect never waits: it is there, full, or not.
        peer.connect(f"{directory}/socket")
        user = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if user != os.geteuid():
            raise Strange(f"{directory} is served by user {user}; remove it and start again")
        _, link = await loop.create_unix_connection(
            lambda: Link(directory.name, journal_id), sock=peer
        )
    except BaseException:
        peer.close()
        raise
    try:
        await link.greet(env)
    except BaseException:
        link.close()
        raise
    return link
