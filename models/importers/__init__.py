"""Checkpoints of published projects as score models, one file a source; reading them runs no code."""
