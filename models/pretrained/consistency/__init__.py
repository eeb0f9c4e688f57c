"""The consistency models of Song et al. 2023 and their teachers."""
