"""What a start is given, and in which words it is refused."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_core import NeverRan, PluginError
from agent_core.program import SITE_PATH
from agent_core.testing.executor import begin, end, make_launch
from agent_core_plugins.subprocess_executor import SubprocessExecutor
from agent_core_plugins.subprocess_executor.environment import NAMES, passed_through

Make = Callable[..., SubprocessExecutor]


async def refusal(executor: SubprocessExecutor, directory: Path, *argv: str, **more: object) -> str:
    with pytest.raises(NeverRan) as caught:
        await begin(executor, make_launch(directory, *argv, **more))
    assert not caught.value.passing
    return str(caught.value)


async def test_a_script_whose_interpreter_is_missing_says_so(make: Make, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert "interpreter" in await refusal(make(), tmp_path, str(script))


async def test_a_script_without_a_first_line_says_what_is_missing(
    make: Make, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("echo hello\n")
    script.chmod(0o755)
    assert "#!/bin/sh" in await refusal(make(), tmp_path, str(script))


async def test_a_command_larger_than_the_system_takes_says_so(make: Make, tmp_path: Path) -> None:
    assert "larger" in await refusal(make(), tmp_path, "/bin/echo", "x" * 200_000)
    many = [str(number) * 1000 for number in range(5000)]
    assert "larger" in await refusal(make(), tmp_path, "/bin/echo", *many)


async def test_a_working_directory_that_is_a_file_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = await refusal(make(), tmp_path, "/bin/true", cwd=str(tmp_path / "file"))
    assert str(tmp_path / "file") in words


@pytest.mark.parametrize("env", [{"A=B": "x"}, {"": "x"}, {"A\0": "x"}, {"A": "x\0y"}])
async def test_an_environment_that_exec_cannot_take_is_refused_by_name(
    make: Make, tmp_path: Path, env: dict[str, str]
) -> None:
    assert "environment name" in await refusal(make(), tmp_path, "/bin/true", env=env)


async def test_a_nul_in_the_command_is_refused(make: Make, tmp_path: Path) -> None:
    assert "NUL" in await refusal(make(), tmp_path, "/bin/echo", "a\0b")


async def test_bytes_that_are_no_utf8_reach_the_task(make: Make, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "/usr/bin/printf", "%s", os.fsdecode(b"\xff\xfea"))
    assert (await end(await begin(make(), launch))).stdout == b"\xff\xfea"


async def test_the_site_gives_names_and_the_task_has_the_last_word(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_TIME", "TZ", "CUDA_HOME", "OTHER", "REMOTEGPU_TOKEN"):
        monkeypatch.setenv(name, f"site's {name}")
    executor = make(environment=["PATH", "LC_*", "TZ", "CUDA_?OME", "REMOTEGPU_TOKEN", "*TOKEN"])
    launch = make_launch(tmp_path, "/usr/bin/env", env={"TZ": "task's"})
    lines = (await end(await begin(executor, launch))).stdout.decode().splitlines()
    assert {"LC_TIME=site's LC_TIME", "TZ=task's", "CUDA_HOME=site's CUDA_HOME"} <= set(lines)
    assert not [line for line in lines if line.startswith(("OTHER=", "REMOTEGPU_TOKEN="))]


def test_a_task_finds_the_sites_python_and_not_the_agents() -> None:
    own = os.path.join(sys.prefix, "bin")
    found = passed_through(NAMES, {"PATH": f"/opt/bin:{own}::/usr/bin"})
    assert found == {"PATH": "/opt/bin:/usr/bin"}
    assert passed_through(NAMES, {"PATH": own}) == {"PATH": SITE_PATH}
    assert passed_through((), {"PATH": "/site"}) == {"PATH": SITE_PATH}


def test_a_runtime_directory_that_cannot_be_used_stops_the_start(make: Make, runtime: Path) -> None:
    runtime.rmdir()
    runtime.write_text("a file")
    try:
        with pytest.raises(PluginError, match=r"agent\.runtime_dir"):
            make()
    finally:
        runtime.unlink()
        runtime.mkdir()
