"""Several samples of each image: batches that are kept, and the modes that draw them."""
