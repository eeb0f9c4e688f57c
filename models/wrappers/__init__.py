"""Score models around score models: clipping and thresholding. Guidance is not included yet."""
