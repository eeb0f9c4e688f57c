"""Training: losses, the loop, EMA, checkpoints, and what turns a config into objects."""
