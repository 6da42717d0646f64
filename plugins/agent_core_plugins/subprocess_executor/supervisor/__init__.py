"""A small process that starts runs and outlives the agent; standard library only."""
