"""`python -m agent_core.cli`: the same command where no script is installed."""

from agent_core.cli import main

main()
