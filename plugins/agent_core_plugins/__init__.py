"""The plugins that come with the agent; each enters by the same door as a third party's."""
