"""The subprocess executor keeps the public contract."""

from collections.abc import Callable

import pytest

from agent_core.testing.executor import ExecutorContract
from agent_core_plugins.subprocess_executor import SubprocessExecutor


class TestSubprocessExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self, _plant: None, make: Callable[..., SubprocessExecutor]) -> SubprocessExecutor:
        return make(max_output_size=self.cap)
