"""What a task sees of the agent's environment: the names that the site lists, nothing else."""

import os
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

NAMES = (
    "PATH",
    "LANG",
    "LC_*",
    "TZ",
    "HOME",
    "USER",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # where the agent has none
OURS = "REMOTEGPU_"  # the agent's own settings and tokens never pass, whatever the site lists


def passed_through(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The site's part of a task's environment. `names` may hold `*`, `?` and `[…]`."""
    passed = {
        name: value
        for name, value in environ.items()
        if not name.startswith(OURS) and any(fnmatchcase(name, pattern) for pattern in names)
    }
    passed["PATH"] = _without_our_own(passed.get("PATH", "")) or PATH
    return passed


def _without_our_own(path: str) -> str:
    """PATH without the agent's virtual environment: a task's python3 is the site's."""
    if sys.prefix == sys.base_prefix:
        return path
    own = os.path.realpath(os.path.join(sys.prefix, "bin"))
    parts = [part for part in path.split(os.pathsep) if part and os.path.realpath(part) != own]
    return os.pathsep.join(parts)
