"""Configs of the flow family."""
