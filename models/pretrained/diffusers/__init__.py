"""diffusers' UNet2DModel: folders and pipelines, read and written."""
