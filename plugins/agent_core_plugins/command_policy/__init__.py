"""The plugin that says which commands may run here: patterns that block, programs that may."""

import os
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from agent_core import Launch, PluginContext, Section, Task, Verdict, hookimpl, site_path
from agent_core_plugins.command_policy.programs import Listed, allowing, find, listed, runs_anything
from agent_core_plugins.command_policy.words import TEXT_LIMIT, simple

# With these a program that is on the list would run code that is not.
LOADER = re.compile(r"LD_.*|GCONV_PATH|DYLD_.*|BASH_ENV|ENV|BASH_FUNC_.*|SHELLOPTS|BASHOPTS")

GOOD_FOR = 5.0  # seconds for which the programs of the list need not be looked for again


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


def _program(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("a program is a name such as python3, or a path such as /usr/bin/python3")
    if "/" in text and not os.path.isabs(text):
        raise ValueError(f"{text!r} is neither a bare name nor a whole path; write one of the two")
    return text


class CommandPolicySettings(Section):
    """What may run. Both lists empty: everything."""

    allowed_commands: tuple[Annotated[str, AfterValidator(_program)], ...] = Field(
        (), max_length=1000
    )
    """Programs that may run, by bare name (found on the site's PATH) or by whole path; empty: all.
    A shell text that is one simple command is judged, and executed, as that program with those
    arguments; any other runs bash, and is allowed where bash is."""
    blocked_patterns: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(
        (), max_length=1000
    )
    """Regular expressions; a command line in which one is found is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What would be executed: the words that the program sees, and the file it is."""

    argv: tuple[str, ...]
    program: str | None  # absolute; None: there is none
    rewritten: bool = False  # not what the launch itself would execute


class CommandPolicy:
    """Judges each launch as core built it, twice in a task's life."""

    Settings = CommandPolicySettings

    def __init__(self, settings: CommandPolicySettings, context: PluginContext) -> None:
        self._allowed = settings.allowed_commands
        self._blocked = [re.compile(pattern) for pattern in settings.blocked_patterns]
        self._path = site_path(os.environ)
        self._clock = context.clock
        self._entries: tuple[float, list[Listed]] = (-GOOD_FOR, [])
        self._say(context)

    def _say(self, context: PluginContext) -> None:
        if not self._allowed and not self._blocked:
            context.log.warning(
                "every command may run here: neither allowed_commands nor blocked_patterns of "
                "[command_policy] names one"
            )
        entries = listed(self._allowed, self._path)
        missing = [rule for rule in self._allowed if rule not in {each.rule for each in entries}]
        if missing:
            context.log.warning("allowed commands that this machine lacks", missing=missing[:50])
        if wide := [each.rule for each in entries if runs_anything(each.place)]:
            context.log.warning("with these on the list any command may run", programs=wide[:50])

    def _listed(self) -> list[Listed]:
        """The list as this machine has it: a program may come or go while the agent runs."""
        now = self._clock.boottime()
        if now - self._entries[0] >= GOOD_FOR:
            self._entries = (now, listed(self._allowed, self._path))
        return self._entries[1]

    @hookimpl
    async def validate(self, task: Task, launch: Launch) -> Verdict:
        """Blocked patterns first: they win over what is allowed."""
        reading = self._reads(task, launch) if self._allowed else None
        return self._blocks(texts_of(launch, reading)) or self._allows(launch, reading)

    def _reads(self, task: Task, launch: Launch) -> Reading:
        """As which program, with which words, this runs where the site has a list.

        A text that is one simple command is that command, unless only the shell is listed.
        """
        name = launch.argv[0] if launch.argv else ""
        plain = Reading(argv=launch.argv, program=find(name, launch.cwd, self._path))
        if task.args or task.exec or task.type == "python":
            return plain
        words = _through_env(launch.argv) if task.type == "script" else simple(launch.text)
        program = find(words[0], launch.cwd, self._path) if words else None
        if not words or program is None:
            return plain
        entries = self._listed()
        if not allowing(entries, program) and plain.program and allowing(entries, plain.program):
            return plain
        return Reading(argv=words, program=program, rewritten=True)

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

    def _allows(self, launch: Launch, reading: Reading | None) -> Verdict:
        if reading is None:
            return Verdict.allow()
        name = launch.argv[0] if not reading.argv else reading.argv[0]
        if reading.program is None:
            return Verdict.deny(
                f"there is no program {name!r} here that could be among this site's "
                "allowed_commands",
                "allowed_commands",
            )
        rule = allowing(self._listed(), reading.program)
        if rule is None:
            reason = _not_listed(name, reading, launch)
            return Verdict.deny(reason, "allowed_commands", argv=reading.argv)
        if not runs_anything(reading.program):
            for variable in launch.env:
                if LOADER.fullmatch(variable):
                    return Verdict.deny(
                        f"the task sets {variable}, with which {name!r} would run other code than "
                        "its own; leave that variable out",
                        "allowed_commands",
                    )
        return Verdict.allow(
            f"allowed_commands: {rule}", argv=reading.argv, program=reading.program
        )


def _not_listed(name: str, reading: Reading, launch: Launch) -> str:
    told = f"the program {name!r} is not among this site's allowed_commands"
    if reading.rewritten or name != launch.argv[0] or launch.argv[1:2] != ("-c",):
        return told
    return f"{told}; this text takes a shell: give one command without shell syntax instead"


def _through_env(argv: tuple[str, ...]) -> tuple[str, ...] | None:
    """A script whose first line is `#!/usr/bin/env NAME`: what env would look for, and run."""
    if len(argv) == 3 and argv[0] in ("/usr/bin/env", "/bin/env") and simple(argv[1]) == argv[1:2]:
        return argv[1:]
    return None


def texts_of(launch: Launch, reading: Reading | None = None) -> tuple[str, ...]:
    """What patterns are tried on: the command as given, as run, and a script's text."""
    script = launch.script[1] if launch.script else launch.text
    texts = [launch.text, " ".join(launch.argv), script]
    if reading:
        texts.append(" ".join(reading.argv))
        texts.append(" ".join((reading.program or "", *reading.argv[1:])))
    return tuple(dict.fromkeys(texts))
