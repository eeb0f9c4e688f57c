"""Fitting a network: losses, the step, the loop, and what they change."""
