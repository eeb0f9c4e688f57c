"""ControlNets of Stable Diffusion, in diffusers' folders and in the files of their authors."""
