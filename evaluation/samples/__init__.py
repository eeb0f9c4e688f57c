"""Samples: batches of them, their conditions, and their folder."""
