"""The validators of this machine's settings, built without an agent, to ask them a question."""

from pathlib import Path

from agent_core import log, plugins
from agent_core.clock import SystemClock
from agent_core.hooks import Caller
from agent_core.protocols import PluginContext
from agent_core.sections import AgentSection, LogSection, PluginsSection
from agent_core.settings import load


def validators(file: Path | None, folder: Path) -> Caller:
    """What answers for them; `folder` stands in for state and runtime directory.

    Raises SettingsError or PluginError, as the start of an agent would.
    """
    loaded = load(file)
    log.configure(loaded.section("log", LogSection), secrets=loaded.secrets())
    agent = loaded.section("agent", AgentSection)

    def context(name: str) -> PluginContext:
        return PluginContext(
            agent_id=agent.id or "check",
            machine_id=agent.machine_id or "check",
            state_dir=folder,
            runtime_dir=folder,
            max_workers=agent.max_workers,
            clock=SystemClock(),
            log=log.get(name),
        )

    infos = plugins.discover(loaded.section("plugins", PluginsSection))
    return Caller(plugins.build(infos, loaded, context))
