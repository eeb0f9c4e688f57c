"""Configs of diffusion transformers."""
