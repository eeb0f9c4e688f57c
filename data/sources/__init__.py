"""Data sets, a file a source, with the readers of their formats."""
