"""Models of an autoencoder's latents: the autoencoder, and the images that it encodes."""
