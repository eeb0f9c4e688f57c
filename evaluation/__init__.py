"""Measuring: bits/dim of a split, and sets of samples."""
