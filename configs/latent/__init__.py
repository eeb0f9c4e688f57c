"""Configs of the vp family."""
