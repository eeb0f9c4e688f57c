"""Score models around score models: guidance, clipping and thresholding."""
