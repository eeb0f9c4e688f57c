"""Posterior sampling by every method, on data whose posterior is known; run ``python -m proofs.inverse``."""
