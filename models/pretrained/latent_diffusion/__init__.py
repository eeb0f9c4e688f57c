"""U-Nets of latents in the files of latent-diffusion."""
