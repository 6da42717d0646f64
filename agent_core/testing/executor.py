"""The contract of an executor, as tests: subclass ExecutorContract and give it your plugin.

    class TestMine(ExecutorContract):
        @pytest.fixture
        async def executor(self, context: PluginContext) -> MyExecutor:
            return MyExecutor(MyExecutor.Settings(max_output_size=self.cap), context)

An executor that cannot tell a signal from an exit code of 128+n says so in `tells_signals`, one
that shows no output before the end in `shows_output`.
"""

import asyncio
import inspect
import json
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog

from agent_core.clock import Instant, SystemClock
from agent_core.errors import NeverRan
from agent_core.execution import Execution
from agent_core.models import Key, Launch, Outcome, Reason
from agent_core.protocols import PluginContext

PATIENCE = 30.0  # seconds after which a wait counts as one that never returns
SECRET = "planted-9f1c2d"  # noqa: S105 (it is to be looked for)


def make_launch(directory: Path, *argv: str, **fields: Any) -> Launch:
    """A start of `argv` with a private scratch directory below `directory`, made."""
    start_id = fields.get("start_id", uuid.uuid4().hex)
    scratch = directory / start_id
    scratch.mkdir()
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "REMOTEGPU_TASK_ID": "task-1",
        "REMOTEGPU_START_ID": start_id,
        "REMOTEGPU_SCRATCH": str(scratch),
        **fields.pop("env", {}),
    }
    filled: dict[str, Any] = {
        "start_id": start_id,
        "key": Key("task-1", "attempt-1"),
        "run_no": 1,
        "argv": argv,
        "text": " ".join(argv),
        "env": env,
        "cwd": str(scratch),
        "scratch": str(scratch),
        "progress": str(scratch / "progress"),
        "stored_at": Instant.now(SystemClock()),
        **fields,
    }
    return Launch(**filled)


async def begin(executor: Any, launch: Launch) -> Execution:
    """Ask for a start as core does; the executor must take it."""
    assert not inspect.iscoroutinefunction(executor.execute), "execute must be a plain def"
    start = executor.execute(launch)
    assert inspect.isawaitable(start), "the contract suite's tasks must be taken"
    execution = await asyncio.wait_for(start, PATIENCE)
    assert isinstance(execution, Execution)
    return execution


async def end(execution: Execution) -> Outcome:
    """Its outcome, within reason, and let go of."""
    outcome = await asyncio.wait_for(execution.wait(), PATIENCE)
    await execution.forget()
    return outcome


async def appears(path: Path) -> None:
    """Until a file is there that a task makes."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never appeared"
        await asyncio.sleep(0.01)


class ExecutorContract:
    """What every executor must do. `executor` is a fixture that the subclass gives."""

    cap: ClassVar[int] = 64 * 1024  # bytes kept of each stream; build the executor with it
    tells_signals: ClassVar[bool] = True  # reason and name of a signal, not only 128+n
    shows_output: ClassVar[bool] = True  # while it runs

    @pytest.fixture(autouse=True)
    def _plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Secrets in the agent's own environment."""
        monkeypatch.setenv("REMOTEGPU_SERVER_CLIENT__TOKEN", SECRET)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    @pytest.fixture
    def context(self, tmp_path: Path, _plant: None) -> Iterator[PluginContext]:
        """Directories of its own; the one for sockets has a short name."""
        runtime = Path(tempfile.mkdtemp(prefix="rg-", dir=_tmpfs()))
        (tmp_path / "state").mkdir(mode=0o700)
        yield PluginContext(
            agent_id=f"agent-{uuid.uuid4().hex}",
            machine_id="machine-1",
            state_dir=tmp_path / "state",
            runtime_dir=runtime,
            max_workers=4,
            clock=SystemClock(),
            log=structlog.get_logger("executor"),
        )
        shutil.rmtree(runtime, ignore_errors=True)

    async def _run(self, executor: Any, directory: Path, *argv: str, **fields: Any) -> Outcome:
        return await end(await begin(executor, make_launch(directory, *argv, **fields)))

    async def _sh(self, executor: Any, directory: Path, text: str, **fields: Any) -> Outcome:
        return await self._run(executor, directory, "/bin/sh", "-c", text, **fields)

    def _killed_by(self, outcome: Outcome, number: signal.Signals) -> bool:
        if self.tells_signals:
            assert outcome.reason is Reason.SIGNAL
            assert outcome.signal == number.name
        return outcome.exit_code == 128 + number

    # --- how it ends

    @pytest.mark.parametrize("code", [0, 1, 42, 255])
    async def test_the_exit_code_is_the_programs_own(
        self, executor: Any, tmp_path: Path, code: int
    ) -> None:
        outcome = await self._sh(executor, tmp_path, f"exit {code}")
        assert (outcome.reason, outcome.exit_code) == (Reason.EXITED, code)
        assert outcome.success is (code == 0)

    async def test_a_program_that_dies_of_a_signal_is_told_as_such(
        self, executor: Any, tmp_path: Path
    ) -> None:
        outcome = await self._sh(executor, tmp_path, "kill -KILL $$")
        assert self._killed_by(outcome, signal.SIGKILL)

    async def test_an_outcome_tells_when_it_ended_and_how_long_it_took(
        self, executor: Any, tmp_path: Path
    ) -> None:
        before = time.time()
        outcome = await self._sh(executor, tmp_path, "exec sleep 0.2")
        assert outcome.ended_at is None or before <= outcome.ended_at <= time.time()
        assert outcome.usage is None or (outcome.usage.wall_s or 1.0) >= 0.2

    async def test_the_end_may_be_awaited_twice_and_a_cancelled_wait_harms_nothing(
        self, executor: Any, tmp_path: Path
    ) -> None:
        launch = make_launch(tmp_path, "/bin/sh", "-c", "echo >began; read line <go; exit 5")
        os.mkfifo(Path(launch.scratch) / "go")
        execution = await begin(executor, launch)
        await appears(Path(launch.scratch) / "began")
        impatient = asyncio.create_task(execution.wait())
        patient = asyncio.create_task(execution.wait())
        given_up, expected = execution.outcome(), execution.outcome()
        await asyncio.sleep(0)
        impatient.cancel()
        given_up.cancel()
        await asyncio.wait({impatient, given_up})
        await asyncio.to_thread((Path(launch.scratch) / "go").write_text, "\n")
        assert (await asyncio.wait_for(patient, PATIENCE)).exit_code == 5
        assert (await asyncio.wait_for(expected, PATIENCE)).exit_code == 5
        assert (await asyncio.wait_for(execution.outcome(), PATIENCE)).exit_code == 5
        assert (await end(execution)).exit_code == 5

    async def test_the_handle_can_be_stored_as_json(self, executor: Any, tmp_path: Path) -> None:
        execution = await begin(executor, make_launch(tmp_path, "/bin/true"))
        assert json.loads(json.dumps(dict(execution.handle))) == dict(execution.handle)
        await end(execution)

    # --- output

    async def test_both_streams_are_kept_apart(self, executor: Any, tmp_path: Path) -> None:
        outcome = await self._sh(executor, tmp_path, "echo out; echo err >&2")
        assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")
        assert (outcome.dropped_stdout, outcome.dropped_stderr) == (0, 0)

    async def test_unicode_output_is_kept_as_it_is(self, executor: Any, tmp_path: Path) -> None:
        text = "grüße 你好 🚀\n"
        outcome = await self._run(executor, tmp_path, "/usr/bin/printf", "%s", text)
        assert outcome.stdout.decode() == text

    async def test_output_may_hold_any_bytes(self, executor: Any, tmp_path: Path) -> None:
        outcome = await self._run(executor, tmp_path, "/usr/bin/printf", r"\377\376\000a\200")
        assert outcome.stdout == b"\xff\xfe\0a\x80"

    async def test_of_more_than_the_cap_head_and_tail_are_kept_and_the_rest_is_counted(
        self, executor: Any, tmp_path: Path
    ) -> None:
        outcome = await self._sh(executor, tmp_path, "seq 1 200000; echo err >&2")
        whole = "".join(f"{number}\n" for number in range(1, 200001)).encode()
        head, _, rest = outcome.stdout.partition(b"\n...[truncated, ")
        number, _, tail = rest.partition(b" bytes dropped]\n")
        assert head
        assert tail
        assert whole.startswith(head)
        assert whole.endswith(tail)
        assert int(number) == outcome.dropped_stdout == len(whole) - len(head) - len(tail)
        assert self.cap // 2 <= len(head) + len(tail) <= self.cap
        assert (outcome.stderr, outcome.dropped_stderr) == (b"err\n", 0)

    async def test_the_last_output_can_be_read_while_it_runs(
        self, executor: Any, tmp_path: Path
    ) -> None:
        text = "echo first; echo last; echo >began; exec sleep 1000"
        launch = make_launch(tmp_path, "/bin/sh", "-c", text)
        execution = await begin(executor, launch)
        await appears(Path(launch.scratch) / "began")
        deadline = time.monotonic() + PATIENCE
        while (got := await execution.tail("stdout", 5)) not in (b"last\n", b""):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert got in (b"last\n", b"")  # an executor need not be able to
        await execution.signal(signal.SIGKILL)
        await end(execution)

    @pytest.mark.parametrize("lines", [300, 200_000], ids=["kept whole", "beyond the cap"])
    async def test_output_followed_piece_by_piece_is_the_runs_own(
        self, executor: Any, tmp_path: Path, lines: int
    ) -> None:
        whole = "".join(f"{number}\n" for number in range(1, lines + 1)).encode()
        text = f"seq 1 {lines // 3}; seq {lines // 3 + 1} {lines}; exec sleep 1000"
        launch = make_launch(tmp_path, "/bin/sh", "-c", text)
        execution = await begin(executor, launch)
        if self.shows_output:
            seen = await self._follow(execution, whole)
            first, last = max(0, len(whole) - self.cap // 2), len(whole)
            assert seen.keys() >= {*range(min(self.cap // 2, last)), *range(first, last)}
            assert (await execution.output("stdout", len(whole) - 3, 2)).data == whole[-3:-1]
            assert (await execution.output("stdout", len(whole), 100)).data == b""
        assert not (await execution.output("stderr", 0, 100)).data
        await execution.signal(signal.SIGKILL)
        outcome = await asyncio.wait_for(execution.wait(), PATIENCE)
        again = await execution.output("stdout", 0, 100)
        assert outcome.stdout.startswith(again.data[:90])
        assert again.total == len(whole) or not self.shows_output
        await execution.forget()

    @staticmethod
    async def _follow(execution: Execution, whole: bytes) -> dict[int, int]:
        """Every byte that is shown until all was printed, by its place in the stream."""
        seen: dict[int, int] = {}
        offset, deadline = 0, time.monotonic() + PATIENCE
        while offset < len(whole):
            piece = await execution.output("stdout", offset, 10_000)
            assert piece.offset >= offset
            assert len(piece.data) <= 10_000
            assert piece.data == whole[piece.offset : piece.offset + len(piece.data)]
            seen.update(enumerate(piece.data, piece.offset))
            offset = piece.offset + len(piece.data)
            assert time.monotonic() < deadline, f"nothing follows byte {offset} of {len(whole)}"
            if not piece.data:
                await asyncio.sleep(0.01)
        return seen

    async def test_standard_input_is_empty(self, executor: Any, tmp_path: Path) -> None:
        outcome = await self._run(executor, tmp_path, "/bin/cat")
        assert (outcome.exit_code, outcome.stdout) == (0, b"")

    # --- where it runs

    async def test_the_environment_is_closed(self, executor: Any, tmp_path: Path) -> None:
        outcome = await self._run(executor, tmp_path, "/usr/bin/env", env={"MINE": "own words"})
        lines = outcome.stdout.decode().splitlines()
        assert "MINE=own words" in lines
        assert "REMOTEGPU_TASK_ID=task-1" in lines
        assert SECRET not in outcome.stdout.decode()

    async def test_it_runs_in_its_working_directory(self, executor: Any, tmp_path: Path) -> None:
        launch = make_launch(tmp_path, "/bin/pwd")
        outcome = await end(await begin(executor, launch))
        assert outcome.stdout.decode().rstrip("\n") == launch.cwd

    async def test_it_may_write_into_its_scratch_directory(
        self, executor: Any, tmp_path: Path
    ) -> None:
        launch = make_launch(tmp_path, "/bin/sh", "-c", 'echo kept >"$REMOTEGPU_SCRATCH/file"')
        assert (await end(await begin(executor, launch))).success
        assert (Path(launch.scratch) / "file").read_text() == "kept\n"

    async def test_without_its_working_directory_it_never_runs(
        self, executor: Any, tmp_path: Path
    ) -> None:
        launch = make_launch(tmp_path, "/bin/true", cwd=str(tmp_path / "nowhere"))
        with pytest.raises(NeverRan, match="nowhere") as caught:
            await begin(executor, launch)
        assert not caught.value.passing

    @pytest.mark.parametrize("program", ["no-such-program", "/no/such/program"])
    async def test_a_program_that_is_not_there_never_runs(
        self, executor: Any, tmp_path: Path, program: str
    ) -> None:
        with pytest.raises(NeverRan, match=program) as caught:
            await begin(executor, make_launch(tmp_path, program))
        assert not caught.value.passing

    async def test_a_file_that_is_no_program_never_runs(
        self, executor: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "data").write_text("no program")
        with pytest.raises(NeverRan, match="data"):
            await begin(executor, make_launch(tmp_path, str(tmp_path / "data")))

    # --- signals and what is left behind

    async def test_a_term_lets_it_end_in_its_own_way(self, executor: Any, tmp_path: Path) -> None:
        text = "trap 'echo bye; exit 7' TERM; echo >began; while :; do sleep 0.02; done"
        launch = make_launch(tmp_path, "/bin/sh", "-c", text)
        execution = await begin(executor, launch)
        await appears(Path(launch.scratch) / "began")
        assert await execution.signal(signal.SIGTERM)
        outcome = await end(execution)
        assert (outcome.exit_code, outcome.stdout) == (7, b"bye\n")

    async def test_a_program_that_ignores_term_still_ends_by_kill(
        self, executor: Any, tmp_path: Path
    ) -> None:
        text = "trap 'echo >termed' TERM; echo >began; while :; do sleep 0.02; done"
        launch = make_launch(tmp_path, "/bin/sh", "-c", text)
        execution = await begin(executor, launch)
        await appears(Path(launch.scratch) / "began")
        assert await execution.terminate("why")  # as it is asked to end first
        await appears(Path(launch.scratch) / "termed")
        assert await execution.signal(signal.SIGKILL)
        assert self._killed_by(await end(execution), signal.SIGKILL)

    async def test_a_signal_after_its_end_says_that_it_had_ended(
        self, executor: Any, tmp_path: Path
    ) -> None:
        execution = await begin(executor, make_launch(tmp_path, "/bin/true"))
        await asyncio.wait_for(execution.wait(), PATIENCE)
        assert not await execution.signal(signal.SIGTERM)
        await end(execution)

    async def test_the_grace_is_a_number_of_seconds(self, executor: Any, tmp_path: Path) -> None:
        execution = await begin(executor, make_launch(tmp_path, "/bin/true"))
        assert execution.grace >= 0
        await end(execution)

    @pytest.mark.parametrize(
        "child",
        [
            "sleep 1000 &",
            "(trap '' TERM HUP; sleep 1000) &",
            "setsid sleep 1000 &",
            "(setsid sh -c 'sleep 1000 & sleep 1000' &);",
        ],
        ids=["background", "deaf", "own session", "daemon"],
    )
    @pytest.mark.parametrize("killed", [False, True], ids=["by itself", "killed"])
    async def test_nothing_of_its_tree_is_left_when_its_end_is_told(
        self, executor: Any, tmp_path: Path, child: str, killed: bool
    ) -> None:
        text = f"exec 9>held; {child} echo >began; " + ("exec sleep 1000" if killed else "exit 3")
        launch = make_launch(tmp_path, "/bin/sh", "-c", text)
        held = Path(launch.scratch) / "held"
        os.mkfifo(held)
        reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
        try:
            execution = await begin(executor, launch)
            if killed:
                await appears(Path(launch.scratch) / "began")
                assert await execution.signal(signal.SIGKILL)
            outcome = await end(execution)
            assert killed or outcome.exit_code == 3
            # Whoever still had the FIFO open for writing would make this raise BlockingIOError.
            assert os.read(reader, 1) == b""
        finally:
            os.close(reader)

    # --- many

    async def test_two_hundred_quick_tasks_each_have_their_own_end(
        self, executor: Any, tmp_path: Path
    ) -> None:
        slots = asyncio.Semaphore(8)

        async def one(number: int) -> tuple[int, bytes]:
            async with slots:
                text = f"echo {number}; exit {number % 7}"
                outcome = await self._sh(executor, tmp_path, text)
                assert outcome.exit_code is not None
                return outcome.exit_code, outcome.stdout

        ends = await asyncio.gather(*(one(number) for number in range(200)))
        assert ends == [(number % 7, b"%d\n" % number) for number in range(200)]


def _tmpfs() -> str:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()  # noqa: S108
