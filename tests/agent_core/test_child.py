"""An executor of a few lines, made of ChildExecution, keeps the public contract."""

from collections.abc import Awaitable

import pytest

from agent_core import ChildExecution, Execution, Launch, PluginContext, hookimpl
from agent_core.testing.executor import ExecutorContract


class Plain:
    def __init__(self, cap: int) -> None:
        self._cap = cap

    @hookimpl
    def execute(self, launch: Launch) -> Awaitable[Execution]:
        return ChildExecution.start(launch, max_output_size=self._cap)


class TestChildExecution(ExecutorContract):
    @pytest.fixture
    def executor(self, context: PluginContext) -> Plain:
        return Plain(self.cap)
