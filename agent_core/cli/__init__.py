"""The `remotegpu` command; one file a group of sub-commands, imported when it is called."""

import sys


def main() -> None:
    """Where the `remotegpu` script begins."""
    from agent_core.cli.run import run  # noqa: PLC0415  # the package itself stays free of click

    sys.exit(run(sys.argv[1:]))
