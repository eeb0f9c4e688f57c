"""One run: from a config to objects, its work directory and its checkpoints."""
