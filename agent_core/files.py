"""Small files that are whole or not there, also after a power cut."""

import os
from pathlib import Path

LIMIT = 8192  # bytes that are read


def read_small(path: Path) -> str | None:
    """The text of a small file without blanks at its ends; None if there is none."""
    try:
        with path.open("rb") as file:
            return file.read(LIMIT).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None


def write_small(path: Path, text: str) -> None:
    """The whole file or the former one, also after a power cut."""
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
