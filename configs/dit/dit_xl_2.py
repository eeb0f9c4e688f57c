"""DiT-XL/2 of Peebles and Xie 2023, to be trained on ImageNet 256x256 in the latents of Stable Diffusion's autoencoder.

python main.py --mode import --config configs/pretrained/sd_vae.py --checkpoint stabilityai/sd-vae-ft-ema
torchrun --nproc-per-node=8 main.py --mode train --config configs/dit/dit_xl_2.py --config.data.root=IMAGENET
"""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.dit.family import dit_network


def get_config() -> ConfigDict:
    """The paper's network and training, without flips: latents are encoded once, and cannot be mirrored."""
    config = get_default_config()
    config.data.update({"dataset": "folder", "image_size": 256, "channels": 3})
    config.data.first_stage = "runs/pretrained/sd_vae"
    config.sde.update({"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02})
    dit_network(config, patch_size=2, channels=1152, depth=28, num_heads=16)
    config.model.update({"learned_variance": True, "class_conditional": True, "condition_dropout": 0.1})
    config.training.update({"loss": "hybrid", "num_steps": 400_000, "batch_size": 256, "gradient_checkpointing": True})
    config.optim.update({"name": "adamw", "learning_rate": 1e-4, "warmup_steps": 0})
    config.sampling.update({"num_steps": 250, "num_samples": 16, "batch_size": 16})
    # of the samples for TensorBoard, and of the bound's terms
    config.training.sample_every = 50_000
    config.eval.update({"likelihoods": ("vlb_continuous",), "vlb_step_sampling": "low_discrepancy"})
    config.eval.vlb_steps_per_image = 20
    return config
