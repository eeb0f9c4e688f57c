"""The networks of guided-diffusion and improved-diffusion, and the noisy classifier."""
