"""The plugin that remembers: tasks, events and facts in one SQLite file."""

import asyncio
from pathlib import Path

from agent_core import PluginContext, Section, Store, Text, hookimpl
from agent_core_plugins.sqlite_store.opening import open_database
from agent_core_plugins.sqlite_store.store import SqliteTasks


class SqliteStoreSettings(Section):
    """Where the agent's database is."""

    path: Text = ""
    """The file; empty: agent.db in the agent's state directory. On a local disk, never on NFS."""


class SqliteStore:
    """Opens the database; what is in it is `store.SqliteTasks`' to know."""

    Settings = SqliteStoreSettings

    def __init__(self, settings: SqliteStoreSettings, context: PluginContext) -> None:
        named = Path(settings.path).expanduser() if settings.path else Path("agent.db")
        self._path = context.state_dir / named if settings.path == "" else named.absolute()

    @hookimpl
    async def store(self) -> Store:
        return SqliteTasks(await asyncio.to_thread(open_database, self._path))
