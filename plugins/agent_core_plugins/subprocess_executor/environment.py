"""What a task sees of the agent's environment: the names that the site lists, nothing else."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from agent_core import site_path

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
OURS = "REMOTEGPU_"  # the agent's own settings and tokens never pass, whatever the site lists


def passed_through(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The site's part of a task's environment. `names` may hold `*`, `?` and `[…]`."""
    passed = {
        name: value
        for name, value in environ.items()
        if not name.startswith(OURS) and any(fnmatchcase(name, pattern) for pattern in names)
    }
    passed["PATH"] = site_path(passed)
    return passed
