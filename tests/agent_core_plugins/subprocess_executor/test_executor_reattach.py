"""What a restarted agent is told of each start: by a living supervisor, by a journal that a dead
one left, by the process itself, or by nothing at all."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent_core import Code, Execution, Instant, Launch, Lost, NeverStarted, Reason
from agent_core.clock import SystemClock
from agent_core.testing.executor import appears, begin, end, make_launch
from agent_core_plugins.subprocess_executor import SubprocessExecutor
from agent_core_plugins.subprocess_executor.orphan import Orphan
from agent_core_plugins.subprocess_executor.supervisor import journal, tree
from tests.agent_core_plugins.subprocess_executor.conftest import end_process, lives, supervisors

Make = Callable[..., SubprocessExecutor]


def sleeper(directory: Path, end: str = "exit 9") -> Launch:
    """Runs until something is written to `go`; says when it began."""
    launch = make_launch(directory, "/bin/sh", "-c", f"echo out; echo >began; read line <go; {end}")
    os.mkfifo(Path(launch.scratch) / "go")
    return launch


async def let_go(launch: Launch) -> None:
    await asyncio.to_thread((Path(launch.scratch) / "go").write_text, "\n")


def stored(launch: Launch, execution: Execution) -> Launch:
    """As core builds it anew after a restart."""
    return replace(launch, handle=dict(execution.handle), argv=())


async def running(make: Make, tmp_path: Path) -> tuple[SubprocessExecutor, Launch, Execution]:
    executor = make()
    launch = sleeper(tmp_path)
    execution = await begin(executor, launch)
    await appears(Path(launch.scratch) / "began")
    return executor, launch, execution


@pytest.mark.parametrize("known_as_running", [False, True])
async def test_a_run_that_goes_on_is_found_and_its_true_end_is_told(
    make: Make, tmp_path: Path, known_as_running: bool
) -> None:
    first, launch, execution = await running(make, tmp_path)
    first.close()
    again = stored(launch, execution) if known_as_running else launch
    found = await make().reattach(again, known_as_running)
    assert isinstance(found, Execution)
    assert found.handle == execution.handle
    assert found.started_at == execution.started_at
    await let_go(launch)
    outcome = await end(found)
    assert (outcome.exit_code, outcome.stdout) == (9, b"out\n")


@pytest.mark.parametrize("known_as_running", [False, True])
async def test_a_run_that_ended_meanwhile_is_told_with_its_output(
    make: Make, tmp_path: Path, known_as_running: bool, runtime: Path
) -> None:
    first, launch, execution = await running(make, tmp_path)
    first.close()
    await let_go(launch)
    again = stored(launch, execution) if known_as_running else launch
    found = await make().reattach(again, known_as_running)
    assert isinstance(found, Execution)
    outcome = await end(found)
    assert (outcome.exit_code, outcome.stdout) == (9, b"out\n")
    assert not list((tmp_path / "state" / "output").iterdir())


TRAPS = "trap 'exit 0' TERM; echo >began; while :; do sleep 0.01; done"


@pytest.mark.parametrize("killed", [False, True], ids=["agent gone", "supervisor gone too"])
async def test_why_a_run_was_asked_to_end_is_found_again_with_its_end(
    make: Make, tmp_path: Path, runtime: Path, killed: bool
) -> None:
    executor = make()
    launch = make_launch(tmp_path, "/bin/sh", "-c", TRAPS)
    execution = await begin(executor, launch)
    await appears(Path(launch.scratch) / "began")
    assert execution.terminated == ""
    assert await execution.terminate("cancelled by \U0001f600\n")
    await execution.terminate("timed out")  # the first words count
    await execution.wait()
    executor.close()
    if killed:
        end_process(*supervisors(runtime))
    found = await make().reattach(stored(launch, execution), True)
    assert isinstance(found, Execution)
    assert found.terminated == "cancelled by \U0001f600\n"
    outcome = await end(found)
    assert (outcome.reason, outcome.exit_code) == (Reason.EXITED, 0)


async def test_words_for_a_run_that_had_ended_by_itself_are_not_kept(
    make: Make, tmp_path: Path
) -> None:
    executor, launch, execution = await running(make, tmp_path)
    await let_go(launch)
    await execution.wait()
    assert not await execution.terminate("too late")
    executor.close()
    found = await make().reattach(stored(launch, execution), True)
    assert isinstance(found, Execution)
    assert found.terminated == ""
    await end(found)


async def test_a_start_that_nobody_tried_never_started(make: Make, tmp_path: Path) -> None:
    make()
    launch = make_launch(tmp_path, "/bin/true")
    assert isinstance(await make().reattach(launch, False), NeverStarted)


async def test_a_start_that_never_ran_never_started(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    executor = make()
    other = await begin(executor, make_launch(tmp_path, "/bin/true"))
    await end(other)
    launch = make_launch(tmp_path, "/bin/true")
    (place,) = (p for p in runtime.iterdir() if p.name.startswith("sup-"))
    executor.close()
    for pid in supervisors(runtime):
        end_process(pid)
    never = {"errno": 2, "stage": "exec"}
    add_lines(place, ("intent", launch.start_id, {}), ("never", launch.start_id, never))
    assert isinstance(await make().reattach(launch, False), NeverStarted)


def add_lines(place: Path, *lines: tuple[str, str, dict[str, object]]) -> None:
    """To the journal of a dead supervisor."""
    path = place / "journal"
    text = b"".join(journal.encode({"k": kind, "s": one, **facts}) for kind, one, facts in lines)
    path.write_bytes(path.read_bytes().rstrip(b"\0") + text)


async def test_after_a_reboot_everything_is_lost(make: Make, tmp_path: Path) -> None:
    _, launch, execution = await running(make, tmp_path)
    before = Instant(wall=1.0, boottime=1.0, boot_id="another boot")
    assert launch.stored_at is not None
    for again in (
        replace(launch, stored_at=before),
        replace(launch, stored_at=before, handle={**execution.handle, "boot": "another boot"}),
    ):
        found = await make().reattach(again, bool(again.handle))
        assert isinstance(found, Lost)
        assert "rebooted" in found.reason
    await execution.signal(signal.SIGKILL)
    await end(execution)


async def test_with_the_journal_gone_a_start_may_have_been_anything(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    make()
    for place in runtime.iterdir():
        shutil.rmtree(place)
    found = await make().reattach(make_launch(tmp_path, "/bin/true"), False)
    assert isinstance(found, Lost)


async def test_with_the_journal_gone_a_start_that_lives_is_found_by_its_marker(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    first, launch, _ = await running(make, tmp_path)
    first.close()
    for place in runtime.iterdir():
        shutil.rmtree(place)
    found = await make().reattach(launch, False)  # killed before it could store the answer
    assert isinstance(found, Execution)
    await let_go(launch)
    assert (await end(found)).reason is Reason.LOST


async def test_a_directory_that_others_could_have_made_is_not_believed(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    make()
    (place,) = runtime.iterdir()
    launch = make_launch(tmp_path, "/bin/true")
    place.chmod(0o777)
    assert isinstance(await make().reattach(launch, False), Lost)
    assert len(list(runtime.iterdir())) == 2
    place.chmod(0o700)
    aside = place.rename(runtime / "aside")
    place.symlink_to(aside)
    assert isinstance(await make().reattach(launch, False), Lost)


async def test_a_start_stored_before_any_journal_may_have_been_anything(
    make: Make, tmp_path: Path
) -> None:
    launch = make_launch(tmp_path, "/bin/true")
    assert isinstance(await make().reattach(launch, False), Lost)


class TestKilledSupervisor:
    async def test_its_run_is_never_told_as_lost_while_it_lives(
        self, make: Make, tmp_path: Path, runtime: Path
    ) -> None:
        _, launch, execution = await running(make, tmp_path)
        wait = asyncio.create_task(execution.wait())
        async with asyncio.timeout(30):  # what it printed so far was taken in
            while await execution.tail("stdout", 10) != b"out\n":
                await asyncio.sleep(0.01)
        (supervisor,) = supervisors(runtime)
        end_process(supervisor)
        done, _ = await asyncio.wait({wait}, timeout=0.3)
        assert not done
        assert lives(int(execution.handle["pid"]))
        await let_go(launch)
        outcome = await wait
        assert (outcome.reason, outcome.error_code) == (Reason.LOST, Code.LOST)
        assert outcome.exit_code is None
        assert outcome.stdout == b"out\n"
        assert outcome.dropped_stdout is None
        await execution.forget()

    async def test_its_run_can_still_be_ended(
        self, make: Make, tmp_path: Path, runtime: Path
    ) -> None:
        _, _, execution = await running(make, tmp_path)
        (supervisor,) = supervisors(runtime)
        end_process(supervisor)
        assert await execution.signal(signal.SIGTERM)
        assert (await end(execution)).reason is Reason.LOST
        assert not lives(int(execution.handle["pid"]))
        assert not await execution.signal(signal.SIGTERM)

    async def test_its_run_is_watched_by_a_restarted_agent_too(
        self, make: Make, tmp_path: Path, runtime: Path
    ) -> None:
        first, launch, execution = await running(make, tmp_path)
        first.close()
        (supervisor,) = supervisors(runtime)
        end_process(supervisor)
        found = await make().reattach(stored(launch, execution), True)
        assert isinstance(found, Execution)
        wait = asyncio.create_task(found.wait())
        done, _ = await asyncio.wait({wait}, timeout=0.1)
        assert not done
        await let_go(launch)
        assert (await wait).reason is Reason.LOST

    async def test_what_its_run_leaves_behind_is_ended(
        self, make: Make, tmp_path: Path, runtime: Path
    ) -> None:
        executor = make()
        text = "exec 9>held; setsid sleep 1000 & (setsid sleep 1000 &); echo >began; read x <go"
        launch = make_launch(tmp_path, "/bin/sh", "-c", text)
        for name in ("held", "go"):
            os.mkfifo(Path(launch.scratch) / name)
        reader = os.open(Path(launch.scratch) / "held", os.O_RDONLY | os.O_NONBLOCK)
        execution = await begin(executor, launch)
        await appears(Path(launch.scratch) / "began")
        (supervisor,) = supervisors(runtime)
        end_process(supervisor)
        await let_go(launch)
        assert (await end(execution)).reason is Reason.LOST
        assert os.read(reader, 1) == b""
        os.close(reader)

    async def test_an_end_that_it_recorded_is_told_as_it_was(
        self, make: Make, tmp_path: Path, runtime: Path
    ) -> None:
        first, launch, execution = await running(make, tmp_path)
        first.close()
        (place,) = (p for p in runtime.iterdir() if p.name.startswith("sup-"))
        await let_go(launch)
        while (book := journal.read(str(place / "journal"))) is None or not book.records[
            launch.start_id
        ].end:
            await asyncio.sleep(0.01)
        (supervisor,) = supervisors(runtime)
        end_process(supervisor)
        found = await make().reattach(stored(launch, execution), True)
        assert isinstance(found, Execution)
        outcome = await end(found)
        assert (outcome.exit_code, outcome.stdout) == (9, b"out\n")

    async def test_new_runs_go_to_a_new_one(
        self, make: Make, tmp_path: Path, runtime: Path
    ) -> None:
        executor, launch, execution = await running(make, tmp_path)
        (supervisor,) = supervisors(runtime)
        end_process(supervisor)
        other = await begin(executor, make_launch(tmp_path, "/bin/sh", "-c", "exit 2"))
        assert (await end(other)).exit_code == 2
        assert supervisors(runtime) != [supervisor]
        await let_go(launch)
        assert (await end(execution)).reason is Reason.LOST

    async def test_killed_between_intent_and_record_a_living_process_is_found_by_its_marker(
        self, make: Make, tmp_path: Path, runtime: Path
    ) -> None:
        launch = self._only_intended(make, tmp_path, runtime)
        process = subprocess.Popen(["/bin/sleep", "1000"], env=launch.env, start_new_session=True)
        try:
            found = await make().reattach(launch, False)
            assert isinstance(found, Execution)
            assert found.handle["pid"] == process.pid
            assert await found.signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
        assert (await end(found)).reason is Reason.LOST

    async def test_killed_between_intent_and_record_with_no_process_left_it_is_lost(
        self, make: Make, tmp_path: Path, runtime: Path
    ) -> None:
        launch = self._only_intended(make, tmp_path, runtime)
        found = await make().reattach(launch, False)
        assert isinstance(found, Execution)
        outcome = await end(found)
        assert (outcome.reason, outcome.error_code) == (Reason.LOST, Code.LOST)

    @staticmethod
    def _only_intended(make: Make, tmp_path: Path, runtime: Path) -> Launch:
        """A journal whose supervisor was killed just after it wrote an intent."""
        make()
        launch = make_launch(tmp_path, "/bin/true")
        (place,) = (p for p in runtime.iterdir() if p.name.startswith("sup-"))
        (place / "socket").touch()  # nobody listens
        add_lines(place, ("intent", launch.start_id, {}))
        return launch


async def test_with_the_runtime_directory_removed_nothing_ends_and_the_run_is_watched(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    first, launch, execution = await running(make, tmp_path)
    first.close()
    for place in runtime.iterdir():
        shutil.rmtree(place)
    found = await make().reattach(stored(launch, execution), True)
    assert isinstance(found, Execution)
    wait = asyncio.create_task(found.wait())
    done, _ = await asyncio.wait({wait}, timeout=0.1)
    assert not done
    await let_go(launch)
    assert (await wait).reason is Reason.LOST


async def test_with_its_directory_removed_in_operation_the_next_but_one_start_has_another(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    from agent_core import NeverRan

    executor, launch, execution = await running(make, tmp_path)
    for place in runtime.iterdir():
        shutil.rmtree(place)
    with pytest.raises(NeverRan) as caught:
        await begin(executor, make_launch(tmp_path, "/bin/true"))
    assert caught.value.passing
    assert (await end(await begin(executor, make_launch(tmp_path, "/bin/true")))).success
    await let_go(launch)
    assert (await end(execution)).exit_code == 9  # its supervisor is still there


async def test_a_supervisor_that_does_not_answer_is_no_reason_to_call_anything_lost(
    make: Make, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, launch, execution = await running(make, tmp_path)
    first.close()
    (supervisor,) = supervisors(runtime)
    os.kill(supervisor, signal.SIGSTOP)
    try:
        monkeypatch.setattr("agent_core_plugins.subprocess_executor.link.HELLO_TIMEOUT", 0.1)
        with pytest.raises(ConnectionError):
            await make().reattach(stored(launch, execution), True)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    monkeypatch.undo()
    found = await make().reattach(stored(launch, execution), True)
    assert isinstance(found, Execution)
    await let_go(launch)
    assert (await end(found)).exit_code == 9


async def test_a_start_that_was_sent_and_not_answered_is_not_called_unbegun(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    executor = make()
    await end(await begin(executor, make_launch(tmp_path, "/bin/true")))
    launch = make_launch(tmp_path, "/bin/sh", "-c", "exit 6")
    (supervisor,) = supervisors(runtime)
    os.kill(supervisor, signal.SIGSTOP)
    try:
        start = executor.execute(launch)
        assert start is not None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(start, 0.1)
        with pytest.raises(ConnectionError):
            await executor.reattach(launch, False)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    async with asyncio.timeout(20):
        while True:
            try:
                found = await executor.reattach(launch, False)
                break
            except ConnectionError:
                await asyncio.sleep(0.01)
    assert isinstance(found, Execution)
    assert (await end(found)).exit_code == 6


async def test_two_agents_in_one_runtime_directory_do_not_meet(
    make: Make, tmp_path: Path, runtime: Path
) -> None:
    _, launch, execution = await running(make, tmp_path)
    command = (
        "import asyncio, pathlib, structlog, sys\n"
        "from agent_core import PluginContext\n"
        "from agent_core.clock import SystemClock\n"
        "from agent_core.testing.executor import make_launch, begin, end\n"
        "from agent_core_plugins.subprocess_executor import SubprocessExecutor as E\n"
        "base = pathlib.Path(sys.argv[1]); base.mkdir()\n"
        "structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))\n"
        "c = PluginContext(agent_id='other', machine_id='m', state_dir=base, clock=SystemClock(),\n"
        "    runtime_dir=pathlib.Path(sys.argv[2]), max_workers=1, log=structlog.get_logger())\n"
        "async def main():\n"
        "    execution = await begin(E(E.Settings(), c), make_launch(base, '/bin/true'))\n"
        "    print((await end(execution)).exit_code)\n"
        "asyncio.run(main())\n"
    )
    other = tmp_path / "other"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", command, str(other), str(runtime)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "0\n", done.stderr
    assert len(supervisors(runtime)) == 2
    await let_go(launch)
    assert (await end(execution)).exit_code == 9


def test_a_process_is_not_taken_for_another_that_had_its_number() -> None:
    me = tree.process(os.getpid())
    assert me is not None
    assert tree.send(me, 0)
    assert not tree.send(me._replace(ticks=me.ticks - 1), 0)
    assert SystemClock().boot_id


def test_a_session_whose_number_is_somebody_elses_by_now_is_gone() -> None:
    process = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
    try:
        now = tree.process(process.pid)
        assert now is not None
        assert Orphan(
            "a-start-of-its-own", {"pid": process.pid, "ticks": now.ticks}, SystemClock()
        ).left()
        stranger = Orphan(
            "a-start-of-its-own", {"pid": process.pid, "ticks": now.ticks - 1}, SystemClock()
        )
        assert not stranger.left()
        assert not stranger.signal(signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
