"""What a third party would test: the public contract, and that the sandbox holds."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from remotegpu_bubblewrap import Bubblewrap

from agent_core import NeverRan, PluginContext
from agent_core.testing.executor import ExecutorContract, begin, end, make_launch


class TestContract(ExecutorContract):
    cap = 1024 * 1024
    tells_signals = False  # bwrap ends with 128+n

    @pytest.fixture
    def executor(self, context: PluginContext) -> Bubblewrap:
        return Bubblewrap(Bubblewrap.Settings(), context)


class TestSandbox:
    context = ExecutorContract.context
    _plant = ExecutorContract._plant

    @pytest.fixture
    def executor(self, context: PluginContext) -> Bubblewrap:
        return Bubblewrap(Bubblewrap.Settings(), context)

    @pytest.fixture
    async def server(self) -> AsyncIterator[tuple[int, list[bytes]]]:
        """A TCP server on loopback, and what it was told."""
        told: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.append(await reader.readline())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1], told

    async def test_a_task_cannot_read_a_planted_secret(
        self, executor: Bubblewrap, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_text("planted")
        launch = make_launch(tmp_path, "/bin/cat", str(secret))
        outcome = await end(await begin(executor, launch))
        assert outcome.exit_code == 1
        assert outcome.stdout == b""
        assert b"No such file" in outcome.stderr

    async def test_a_task_cannot_reach_a_planted_server(
        self, executor: Bubblewrap, tmp_path: Path, server: tuple[int, list[bytes]]
    ) -> None:
        port, told = server
        text = f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo reached >&3"
        outside = await asyncio.create_subprocess_exec("/bin/bash", "-c", text)
        assert await outside.wait() == 0
        launch = make_launch(tmp_path, "/bin/bash", "-c", text)
        outcome = await end(await begin(executor, launch))
        assert outcome.exit_code != 0
        assert told == [b"reached\n"]  # from outside the sandbox alone

    async def test_a_task_can_write_nothing_but_its_scratch_and_its_tmp(
        self, executor: Bubblewrap, tmp_path: Path
    ) -> None:
        text = "echo >/usr/mark; echo >/mark; echo >/tmp/mark; echo >mark; ls /usr/mark /tmp /mark"
        launch = make_launch(tmp_path, "/bin/sh", "-c", text)
        await end(await begin(executor, launch))
        assert (Path(launch.scratch) / "mark").exists()
        assert not Path("/usr/mark").exists()
        assert not Path("/tmp/mark").exists()

    async def test_a_task_cannot_choose_what_is_loaded_outside(
        self, executor: Bubblewrap, tmp_path: Path
    ) -> None:
        mark = tmp_path / "outside"
        fake = tmp_path / "bwrap"
        fake.write_text(f"#!/bin/sh\necho >{mark}\n")
        fake.chmod(0o755)
        launch = make_launch(tmp_path, "/bin/true", env={"PATH": str(tmp_path)})
        assert (await end(await begin(executor, launch))).success
        assert not mark.exists()

    async def test_a_working_directory_outside_is_refused_by_name(
        self, executor: Bubblewrap, tmp_path: Path
    ) -> None:
        launch = make_launch(tmp_path, "/bin/true", cwd=str(tmp_path))
        with pytest.raises(NeverRan, match=tmp_path.name):
            await begin(executor, launch)
