"""The step contract between router and shard: generated messages and stubs."""
