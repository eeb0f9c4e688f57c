"""Captions: as a model is told them, and under its pictures."""
