"""Autoencoders with a codebook of latent diffusion, in the files of diffusers and of latent-diffusion."""
