"""Configs of the subvp family."""
