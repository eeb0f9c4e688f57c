"""Configs of clips."""
