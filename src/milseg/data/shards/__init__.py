"""Photos in tar shards: written, indexed, fetched, read."""
