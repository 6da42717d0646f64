"""The plugin that says who is next: the most urgent that fits, and of those who came first."""

from agent_core import PluginContext, Scheduler, Section, hookimpl
from agent_core_plugins.priority_scheduler.line import Line


class PrioritySchedulerSettings(Section):
    """Nothing to set."""


class PriorityScheduler:
    """Makes the waiting line; `Line` keeps it."""

    Settings = PrioritySchedulerSettings

    def __init__(self, settings: PrioritySchedulerSettings, context: PluginContext) -> None:
        pass

    @hookimpl
    def schedule(self) -> Scheduler:
        return Line()
