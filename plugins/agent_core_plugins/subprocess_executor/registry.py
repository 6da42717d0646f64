"""The names of the supervisors' directories, kept on disk: a journal that should be there and is
not may have held what nobody can know any more."""

import contextlib
import os
import stat
from pathlib import Path


class Registry:
    """A short list in one file of the state directory, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> set[str]:
        try:
            return set(self._path.read_text(encoding="ascii").split())
        except FileNotFoundError:
            return set()

    def add(self, name: str) -> None:
        """Raises OSError; then nothing may be started there."""
        self._write(self.names() | {name})

    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):  # a name too many only makes us more careful
            self._write(self.names() - {name})

    def drop(self, names: set[str]) -> None:
        """These journals are gone, and whatever may have stood in them is told."""
        with contextlib.suppress(OSError):
            self._write(self.names() - names)

    def _write(self, names: set[str]) -> None:
        beside = self._path.with_name(self._path.name + ".new")
        with open(beside, "w", encoding="ascii") as file:
            file.write("".join(f"{name}\n" for name in sorted(names)))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)


def ours_alone(directory: Path) -> bool:
    """The runtime directory may be everybody's, so a name proves nothing."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return private and found.st_uid == os.geteuid()
