"""Score models around score models: clipping, and what guides."""
