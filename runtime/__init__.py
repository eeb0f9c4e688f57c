"""The machine that a command runs on, and nothing of diffusion: files, locks, signals, memory, processes."""
