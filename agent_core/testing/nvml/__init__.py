"""GPUs for tests on machines that have none: a stand-in for NVIDIA's library, to be compiled.

    library = StandIn.build(tmp_path, [Fake("GPU-1", "NVIDIA A100", 80 * 2**30)])
    subprocess.run(program, env={**os.environ, **library.environment})

The library is found by the loader, as NVIDIA's is: a process sees it if it starts with
`environment`. nvidia-ml-py and whatever asks through it run as they are.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "libnvidia-ml.so.1"
LIMIT = 60.0  # seconds for the compiler


class NoCompiler(RuntimeError):
    """There is no C compiler `cc` on this machine."""


@dataclass(frozen=True, slots=True)
class Fake:
    """A device that does not exist."""

    uuid: str
    name: str = "NVIDIA Stand-in"
    memory: int = 16 * 2**30  # bytes
    lost: bool = False  # it fell off the bus


class StandIn:
    """A compiled library and what it tells; `show` and `hang` may be called while it is used."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._devices: Sequence[Fake] = ()

    @classmethod
    def build(cls, directory: Path, devices: Sequence[Fake] = ()) -> "StandIn":
        """Compile it into this directory. Raises NoCompiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise NoCompiler("no C compiler: install one so that `cc` is found (apt: gcc)")
        source = Path(__file__).with_name("nvml.c")
        target = directory / NAME
        subprocess.run(
            [
                compiler,
                "-shared",
                "-fPIC",
                "-O1",
                f"-Wl,-soname,{NAME}",
                "-o",
                target,
                source,
                "-ldl",
            ],
            check=True,
            timeout=LIMIT,
        )
        made = cls(directory)
        made.show(*devices)
        return made

    @property
    def environment(self) -> dict[str, str]:
        """By which the loader of a new process finds it."""
        before = os.environ.get("LD_LIBRARY_PATH")
        return {"LD_LIBRARY_PATH": f"{self.directory}:{before}" if before else str(self.directory)}

    def show(self, *devices: Fake) -> None:
        """These are there from now on; nothing hangs."""
        self._devices = devices
        self._write("")

    def hang(self) -> None:
        """Every call stands still, until other devices are shown."""
        self._write("hang\n")

    def unload(self) -> None:
        """The driver is gone."""
        (self.directory / "devices").unlink(missing_ok=True)

    def _write(self, first: str) -> None:
        lines = [
            f"{each.uuid} {'lost' if each.lost else 'ok'} {each.memory} {each.name}\n"
            for each in self._devices
        ]
        whole = self.directory / "devices.new"
        whole.write_text(first + "".join(lines))
        whole.replace(self.directory / "devices")
