"""The `remotegpu` command; one file a group of sub-commands, imported when it is called."""

import sys


def main() -> None:
    """Where the `remotegpu` script begins."""
    try:
        from agent_core.cli.run import run  # noqa: PLC0415  # the package stays free of click

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while it was still being imported
        code = 130
    sys.exit(code)
