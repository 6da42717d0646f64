"""Which file a program's name stands for, and whether a site's list names that very file."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

LINKS = 40  # as many as the kernel follows
# One file that is another program by each name it is called by: its name allows no other one.
MANY_IN_ONE = frozenset({"busybox", "toybox", "coreutils", "box", "sbase-box"})
# Who may run one of these may run anything: said once at the start.
ANYTHING = re.compile(
    r"(ba|da|z|k|c|tc|fi|a)?sh|python[\d.]*|perl[\d.]*|ruby[\d.]*|node(js)?|php[\d.]*|lua[\d.]*"
    r"|[gmn]?awk|env|xargs|find|nice|nohup|timeout|setsid|stdbuf|sudo|su|ssh|make|busybox|toybox"
)


def find(program: str, cwd: str, path: str) -> str | None:
    """The absolute path of what would be executed; None if nothing would.

    A name is looked for in `path`, the site's, in absolute folders alone; a path with a slash
    stands in `cwd`, as the kernel reads it.
    """
    if not program or "\0" in program:
        return None
    if "/" in program:
        there = os.path.join(cwd, program)
        return there if _is_program(there) else None
    for folder in path.split(os.pathsep):
        there = os.path.join(folder, program)
        if os.path.isabs(folder) and _is_program(there):
            return there
    return None


def _is_program(path: str) -> bool:
    try:
        return os.path.isfile(path) and os.access(path, os.X_OK)
    except (OSError, ValueError):
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One entry of a site's `allowed_commands`, found on its PATH now."""

    rule: str  # as the site wrote it
    place: str
    real: str


def listed(rules: Sequence[str], path: str) -> list[Listed]:
    """The entries that name a program of this machine."""
    return [
        Listed(rule=rule, place=_place(there), real=os.path.realpath(there))
        for rule in rules
        if (there := find(rule, "/", path))
    ]


def allowing(entries: Sequence[Listed], program: str) -> str | None:
    """The rule that allows the file at this path: one that leads to it, or that it leads to.

    Symbolic links are followed from both sides. Where many programs are links to one file, a rule
    allows what bears its own name, and the file's own name allows them all.
    """
    way = _way(program)
    for entry in entries:
        if entry.place in way:
            return entry.rule
    real = os.path.realpath(program)
    for entry in entries:
        if entry.real == real and os.path.basename(real) not in MANY_IN_ONE:
            return entry.rule
    return None


def _way(path: str) -> list[str]:
    """The places that a path leads to by symbolic links, itself the first."""
    way = [_place(path)]
    for _ in range(LINKS):
        try:
            target = os.readlink(way[-1])
        except (OSError, ValueError):
            break
        way.append(_place(os.path.join(os.path.dirname(way[-1]), target)))
    return way


def _place(path: str) -> str:
    """Its folder without symbolic links (/bin is /usr/bin), its own name as it stands."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


@lru_cache(maxsize=1024)
def runs_anything(program: str) -> bool:
    """Whether its name is one of a program that runs what it is told, such as a shell."""
    names = (os.path.basename(program), os.path.basename(os.path.realpath(program)))
    return any(ANYTHING.fullmatch(name) for name in names)
