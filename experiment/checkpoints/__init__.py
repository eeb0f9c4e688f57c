"""Checkpoints in a work directory: complete or absent."""
