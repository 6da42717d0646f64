"""docs/writing_plugins.md: it shows the third party's file as it is, and every hook by an example
that runs."""

import ast
import asyncio
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pluggy
import pytest
import structlog

from agent_core import (
    Code,
    Demand,
    Event,
    EventKind,
    Execution,
    Free,
    Key,
    Lost,
    NeverStarted,
    Outcome,
    PluginContext,
    PluginError,
    Reason,
    Status,
    Task,
)
from agent_core.clock import SystemClock
from agent_core.hookspecs import GROUP, Hooks
from agent_core.testing.executor import begin, end, make_launch

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "writing_plugins.md").read_text()
FILE = ROOT / "tests" / "third_party" / "bubblewrap_executor" / "remotegpu_bubblewrap.py"
HOOKS = [name for name, spec in vars(Hooks).items() if hasattr(spec, f"{GROUP}_spec")]


def section(title: str) -> str:
    """A section's text, its sub-sections with it."""
    level, _, _ = title.partition(" ")
    start = TEXT.index(f"\n{title}\n")
    following = re.search(rf"^#{{1,{len(level)}}} ", TEXT[start + len(title) + 2 :], re.MULTILINE)
    return TEXT[start : start + len(title) + 2 + following.start()] if following else TEXT[start:]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def examples() -> dict[str, str]:
    """The code of each hook's section that holds a plugin."""
    found = {}
    for hook in HOOKS:
        for block in blocks(section(f"### {hook}")):
            if "@hookimpl" in block:
                found[hook] = block
    return found


def plugin(hook: str, context: PluginContext, **settings: object) -> Any:
    """The example's plugin, built as the agent builds it and registered with the real hooks."""
    space: dict[str, Any] = {"__name__": f"example_{hook}"}
    exec(compile(examples()[hook], f"docs: {hook}", "exec"), space)
    hooked = [one for one in space.values() if isinstance(one, type) and _has_hooks(one)]
    (cls,) = hooked
    model = getattr(cls, "Settings", None)
    built = cls(model(**settings) if model else {}, context)
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    manager.register(built)
    manager.check_pending()
    return built


def _has_hooks(cls: type) -> bool:
    return any(hasattr(member, f"{GROUP}_impl") for member in vars(cls).values())


@pytest.fixture
def context(tmp_path: Path) -> PluginContext:
    return PluginContext(
        agent_id="agent",
        machine_id="machine",
        state_dir=tmp_path,
        runtime_dir=tmp_path,
        max_workers=1,
        clock=SystemClock(),
        log=structlog.get_logger(),
    )


def test_the_page_shows_the_third_partys_file_whole_and_in_order() -> None:
    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.strip()]

    shown = lines("".join(blocks(section("### The file"))))
    assert shown == lines(FILE.read_text())
    assert len(FILE.read_text().splitlines()) < 80


def test_each_hook_has_a_section_in_the_order_in_which_a_task_meets_it() -> None:
    headings = re.findall(r"^### ([a-z]+)$", section("## The hooks"), re.MULTILINE)
    assert sorted(headings) == sorted(HOOKS)
    for hook in HOOKS:
        assert "If it fails" in section(f"### {hook}")


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hooks_signature_is_the_real_one(hook: str) -> None:
    shown = blocks(section(f"### {hook}"))[0]
    (written,) = ast.parse(shown.rstrip() + ": ...").body
    source = (ROOT / "agent_core" / "hookspecs.py").read_text()
    (hooks,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef))
    (real,) = (n for n in hooks.body if getattr(n, "name", "") == hook)
    assert isinstance(real, ast.FunctionDef | ast.AsyncFunctionDef)
    assert type(written) is type(real)
    assert isinstance(written, type(real))
    assert ast.dump(written.args) == ast.dump(real.args)
    assert written.returns is not None
    assert real.returns is not None
    assert ast.dump(written.returns) == ast.dump(real.returns)


@pytest.mark.parametrize("block", blocks(TEXT), ids=range(len(blocks(TEXT))))
def test_each_example_imports_only_the_public_front_page(block: str) -> None:
    imported = re.findall(r"^(?:from|import) (agent_core\S*)", block, re.MULTILINE)
    assert set(imported) <= {"agent_core", "agent_core.testing.executor"}


async def test_the_store_example_says_that_it_is_none(context: PluginContext) -> None:
    with pytest.raises(PluginError, match="url-of-it"):
        await plugin("store", context, url="url-of-it").store()


async def test_the_claim_example_brings_tasks_from_files_and_reports_them(
    context: PluginContext, tmp_path: Path
) -> None:
    for name, text in (("a", '{"command": "true"}'), ("b", "no json"), ("c", '{"command": "x"}')):
        (tmp_path / f"{name}.json").write_text(text)
    source = plugin("claim", context, directory=tmp_path)
    first = await source.claim(Demand(slots=2))
    assert [(task.id, task.command, bool(task.unreadable)) for task in first.tasks] == [
        ("a", "true", False),
        ("b", "", True),
    ]
    assert first.ask_again == 0
    second = await source.claim(Demand(slots=2))
    assert [task.id for task in second.tasks] == ["c"]
    assert second.ask_again > 0
    outcome = Outcome(reason=Reason.EXITED, exit_code=3)
    event = Event(
        kind=EventKind.COMPLETE,
        key=Key("a", ""),
        source="spool",
        run_no=1,
        at=0.0,
        seq=9,
        outcome=outcome,
    )
    for _ in range(2):
        (receipt,) = await source.report([event])
        assert (receipt.seq, receipt.code) == (9, Code.OK)
    assert json.loads((tmp_path / "a.done").read_text()) == {"reason": "exited", "exit_code": 3}


async def test_the_validate_example_denies_what_is_too_long(
    context: PluginContext, tmp_path: Path
) -> None:
    quota = plugin("validate", context, longest=60)
    task = Task(id="t", command="true")
    short = make_launch(tmp_path, "true", timeout=60.0)
    long = make_launch(tmp_path, "true", timeout=61.0)
    assert (await quota.validate(task, short)).allowed
    verdict = await quota.validate(task, long)
    assert not verdict.allowed
    assert "60 s" in verdict.reason


def test_the_schedule_example_starts_the_oldest_first(context: PluginContext) -> None:
    scheduler = plugin("schedule", context).schedule()
    for number in (2, 1, 3):
        scheduler.add(Task(id=str(number), command="true", created_at=float(number)))
    assert [task.id for task in scheduler.next([], Free(slots=2)).start] == ["1", "2"]
    scheduler.remove(Key("1", ""))
    assert [task.id for task in scheduler.next([], Free(slots=1)).start] == ["2"]
    assert len(scheduler) == 2


async def test_the_execute_example_takes_what_asks_for_it(
    context: PluginContext, tmp_path: Path
) -> None:
    nice = plugin("execute", context)
    assert nice.execute(make_launch(tmp_path, "/usr/bin/nice")) is None
    launch = make_launch(tmp_path, "/usr/bin/nice", env={"NICE": "1"})
    assert (await end(await begin(nice, launch))).stdout == b"19\n"
    fresh = make_launch(tmp_path, "/bin/true")
    assert isinstance(await nice.reattach(fresh, False), NeverStarted)
    assert isinstance(await nice.reattach(fresh, True), Lost)


async def test_the_reattach_example_finds_its_run_again(
    context: PluginContext, tmp_path: Path
) -> None:
    first = plugin("reattach", context)
    launch = make_launch(tmp_path, "/bin/sh", "-c", "echo out; sleep 0.2; exit 4")
    await begin(first, launch)
    found = await plugin("reattach", context).reattach(launch, True)
    assert isinstance(found, Execution)
    outcome = await end(found)
    assert (outcome.exit_code, outcome.stdout) == (4, b"out\n")
    fresh = make_launch(tmp_path, "/bin/true")
    assert isinstance(await first.reattach(fresh, False), Lost)


async def test_the_inventory_example_counts_cores(context: PluginContext) -> None:
    assert ((await plugin("inventory", context).inventory()).cpu_cores or 0) > 0


class Records:
    """As much of an agent as the example asks: its tasks."""

    async def tasks(self, statuses: Collection[Status] = ()) -> list[Task]:
        return [Task(id="t", command="true", status=status) for status in statuses]


async def test_the_serve_example_says_how_many_run(context: PluginContext) -> None:
    with structlog.testing.capture_logs() as said:
        serving = asyncio.create_task(plugin("serve", context, interval=0.001).serve(Records()))
        async with asyncio.timeout(10):
            while len(said) < 2:
                await asyncio.sleep(0.001)
        serving.cancel()
        await asyncio.wait({serving})
    assert said[0] == {"event": "running now", "tasks": 1, "log_level": "info"}
