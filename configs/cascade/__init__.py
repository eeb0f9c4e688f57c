"""Configs of cascades, each a list of configs of its stages."""
