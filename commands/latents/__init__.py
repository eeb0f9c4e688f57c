"""Commands about latents: images between two others, and images as they come about."""
