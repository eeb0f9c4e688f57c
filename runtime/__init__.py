"""What a command needs of the machine it runs on, and nothing of diffusion. Imports neither torch nor NumPy."""
