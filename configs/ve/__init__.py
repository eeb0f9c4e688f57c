"""Configs of the ve family."""
