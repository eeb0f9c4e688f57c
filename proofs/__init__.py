"""Every sampler on every SDE, held to distributions whose score is known; run ``python -m proofs``."""
