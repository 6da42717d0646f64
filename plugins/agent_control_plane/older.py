"""Tasks as older agents must be told them: one wrong type, and they lose a whole claim."""

import math
import shlex
from typing import Final

from agent_core.api.wire import Json

# They know no `script`: its text, or the file it names, is run by its #! line, or by bash.
_UNKNOWN: Final = frozenset({"depends_on", "user", "labels", "resources", "executor"})
_SCRIPT: Final = """\
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
if [ -f {text} ]; then cat {text}; else printf %s {text}; fi > "$dir/script" || exit 1
chmod 700 "$dir/script" || exit 1
if [ "$(head -c 2 "$dir/script")" = '#!' ]; then "$dir/script"; else bash "$dir/script"; fi
"""


def older_task(task: dict[str, Json]) -> dict[str, Json]:
    """The same task for an agent that ignores `type`, `exec` and `env`'s other name.

    Retries, order and waiting are the server's: theirs lose results.
    """
    known = {name: value for name, value in task.items() if name not in _UNKNOWN}
    return {
        **known,
        "command": bash_command(task),
        "env_vars": task["env"],
        "timeout": math.ceil(task["timeout"]),
        "retry_delay": math.ceil(task["retry_delay"]),
        "disconnect_grace": math.ceil(task["disconnect_grace"]),
        "priority": 5,
        "max_retries": 0,
        "retry_count": 0,
        "exit_code": None,
        "error": "",
        "error_msg": "",
        "started_at": None,
        "ended_at": None,
        "parent_id": task["parent_id"] or "",
    }


def bash_command(task: dict[str, Json]) -> str:
    """What `bash -c` does as the task's own type would have."""
    command: str = task["command"]
    if task["args"]:
        return command  # executed directly with its args, whatever the type
    word = shlex.quote(command)
    if task["exec"]:
        return f"exec {word}"
    if task["type"] == "python":
        return f"if [ -f {word} ]; then exec python3 {word}; else exec python3 -c {word}; fi"
    if task["type"] == "script":
        return _SCRIPT.format(text=word)
    return command
