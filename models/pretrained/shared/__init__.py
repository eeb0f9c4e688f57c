"""Common to all importers: plans, renaming, settings and tensors."""
