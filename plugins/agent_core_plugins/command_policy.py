"""The plugin that says which commands may run here: patterns that block, programs that may."""

import os
import re
import shutil
from typing import Annotated

from pydantic import AfterValidator, Field

from agent_core import Launch, PluginContext, Section, Task, Verdict, hookimpl

TEXT_LIMIT = 64 * 2**10  # characters of one text that a pattern is tried on


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


def _program(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("a program is a name such as python3, or a path such as /usr/bin/python3")
    return text


class CommandPolicySettings(Section):
    """What may run. Both lists empty: everything."""

    allowed_commands: tuple[Annotated[str, AfterValidator(_program)], ...] = Field(
        (), max_length=1000
    )
    """Programs that may run, by name or by path; empty: all. A shell text runs bash."""
    blocked_patterns: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(
        (), max_length=1000
    )
    """Regular expressions; a command line in which one is found is refused."""


class CommandPolicy:
    """Judges each launch as core built it, twice in a task's life."""

    Settings = CommandPolicySettings

    def __init__(self, settings: CommandPolicySettings, context: PluginContext) -> None:
        self._allowed = settings.allowed_commands
        self._blocked = [re.compile(pattern) for pattern in settings.blocked_patterns]

    @hookimpl
    async def validate(self, task: Task, launch: Launch) -> Verdict:
        """Blocked patterns first: they win over what is allowed."""
        return self._blocks(texts_of(launch)) or self._allows(launch)

    def _blocks(self, texts: tuple[str, ...]) -> Verdict | None:
        for text in texts if self._blocked else ():
            if len(text) > TEXT_LIMIT:
                return Verdict.deny(
                    f"the command is longer than the {TEXT_LIMIT} characters that this site's "
                    "blocked_patterns are tried on; put it into a file and run that",
                    "blocked_patterns",
                )
            for pattern in self._blocked:
                if pattern.search(text):
                    return Verdict.deny(
                        f"the command matches this site's blocked pattern {pattern.pattern!r}",
                        f"blocked_patterns: {pattern.pattern}",
                    )
        return None

    def _allows(self, launch: Launch) -> Verdict:
        if not self._allowed:
            return Verdict.allow()
        program = launch.argv[0] if launch.argv else ""
        if "/" not in program and "PATH" in launch.env:
            return Verdict.deny(
                f"the task sets PATH, so {program!r} could be any program; "
                "name the program by its full path, or leave PATH out",
                "allowed_commands",
            )
        for rule in self._allowed:
            if matches(rule, program):
                return Verdict.allow(f"allowed_commands: {rule}")
        return Verdict.deny(
            f"the program {program!r} is not among this site's allowed_commands",
            "allowed_commands",
        )


def texts_of(launch: Launch) -> tuple[str, ...]:
    """What patterns are tried on: the command as given, as run, and a script's text."""
    script = launch.script[1] if launch.script else launch.text
    return tuple(dict.fromkeys((launch.text, " ".join(launch.argv), script)))


def matches(rule: str, program: str) -> bool:
    """Whether a site's rule allows this program.

    A bare name and a path are the same program only where the agent's own PATH finds that name:
    /tmp/evil/ls is not ls, and ./ls never is.
    """
    if rule == program:
        return True
    places = [shutil.which(each) if "/" not in each else each for each in (rule, program)]
    if "/" not in rule and "/" not in program:
        return False
    here, there = (place and os.path.isabs(place) and _place(place) for place in places)
    return bool(here) and here == there


def _place(path: str) -> str:
    """Its folder without symbolic links (/bin is /usr/bin), its own name as it stands.

    The last link is not followed: ls and sh may both be links to one busybox.
    """
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)
