"""Diffusion transformers in the files of facebookresearch/DiT and willisma/SiT, and in folders of diffusers."""
