"""Parts of every importer: plans, renaming, settings, tensors."""
