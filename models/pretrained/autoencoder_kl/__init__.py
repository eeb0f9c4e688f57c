"""KL autoencoders of Stable Diffusion and its kin, in the files of diffusers and of latent-diffusion."""
