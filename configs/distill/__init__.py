"""Configs of models of few steps, distilled or tuned from a trained teacher."""
