"""Distributions built from source, and environments that hold nothing but what a test installs."""

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """A project's sdist, and the wheel built from that sdist, without a download."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """A virtual environment with this one's libraries, but nothing of this checkout in it."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def install(self, *wheels: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet",
             "--no-deps", "--no-index", "--disable-pip-version-check", *wheels],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A program of this environment, with a closed environment of its own."""
        program, *arguments = argv
        environ = {
            "PATH": f"{self.path / 'bin'}:/usr/bin:/bin",
            "HOME": str(cwd),
            "LANG": "C.UTF-8",
        }
        return subprocess.run(
            [self.path / "bin" / program, *arguments],
            cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


def environment(path: Path) -> Environment:
    """Make one. The libraries come in by a path: an editable install beside them stays outside."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    (site,) = (path / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Environment(path=path)
