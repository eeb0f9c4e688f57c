"""DDPM on a folder of the reader's own images: ``--config.data.root=FOLDER``, or $SDE_DATA.

PNG, JPEG and the like of any size, in any tree; where FOLDER has subfolders, they are the classes, and
``--config.model.class_conditional=true`` has the network told which one to draw. FOLDER/train and FOLDER/test are the
two splits, if they are there; else one image in ten is held out.
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """A U-Net of 2.4 million parameters for hundreds to thousands of images, on the table of Ho et al. 2020.

    Images have 256 grey levels, whatever they show: the table begins at beta = 1e-4, sigma = 0.01, as theirs does. The
    digits' table, beta = 2e-3, would cost 2 bits/dim more at equally likely levels.
    """
    config = get_default_config()
    config.sde.update({"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02})
    config.data.update(
        {
            "dataset": "folder",
            "image_size": 32,  # the shorter side is resized to this, and the middle taken; a multiple of 4
            "channels": 3,  # 1 for grey
            "random_flip": False,  # True doubles few images, where left and right mean nothing
        }
    )
    config.model.update(
        {
            "channels": 48,  # 128 and num_res_blocks 2, as Ho et al., given a GPU and many images
            "channel_mult": (1, 2, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (),  # in the middle alone, so that any image_size will do
            "norm_groups": 8,
            "dropout": 0.1,  # few images are soon learned by heart
        }
    )
    config.training.update(
        {
            "num_steps": 10_000,
            "batch_size": 32,
            "ema_decay": 0.999,
            "checkpoint_every": 500,
            "sample_every": 1_000,
        }
    )
    config.optim.update({"learning_rate": 5e-4, "warmup_steps": 200})
    config.eval.update({"batch_size": 32, "vlb_steps_per_image": 20, "ode_rtol": 1e-4, "ode_atol": 1e-4})
    return config
