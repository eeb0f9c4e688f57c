"""Small checkpoints as other projects write them, of images such as digits, and the commands that import them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from importer_references import randomize
from safetensors.torch import save_file
from tiny import ROOT

from models import Autoencoder, EpsParameterization, NetworkScoreModel
from models.backbones import DiT, NCSNpp, UNet
from models.backbones.blocks.patches import sincos_positions
from models.pretrained import export_diffusers
from models.pretrained.autoencoder_kl.names import DIFFUSERS, autoencoder_sources, named_layers
from models.pretrained.autoencoder_kl.settings import CODEBOOK
from models.pretrained.ddpm import ddpm_sources, plan_ddpm
from models.pretrained.dit.importer import dit_sources
from models.pretrained.edm.names import edm_sources
from models.pretrained.guided.importer import guided_sources
from models.pretrained.guided.settings import plan_guided
from models.pretrained.score_sde.layout import score_sde_sources
from models.pretrained.shared.renaming import renamed
from sde_lib import Tabulated

# The fewest images and steps that have every part.
SECONDS = [
    "--config.device=cpu",
    "--config.data.dataset=digits",
    "--config.data.image_size=0",
    "--config.data.channels=0",
    "--config.training.num_steps=2",
    "--config.training.batch_size=4",
    "--config.training.checkpoint_every=2",
    "--config.training.log_every=1",
    "--config.training.sample_every=0",
    "--config.optim.warmup_steps=1",
    "--config.sampling.num_steps=3",
    "--config.sampling.num_samples=11",
    "--config.sampling.batch_size=11",
    "--config.eval.likelihoods=vlb,ode",
    "--config.eval.num_images=2",
    "--config.eval.batch_size=2",
    "--config.eval.vlb_num_steps=4",
    "--config.eval.vlb_steps_per_image=0",
    "--config.eval.ode_rtol=0.5",
    "--config.eval.ode_atol=0.5",
]


@dataclass(frozen=True)
class Foreign:
    """A checkpoint, the config that it is for, and what the project's settings are.

    Attributes:
        source: --source.
        config: A config of configs/pretrained/.
        checkpoint: The file or folder.
        extra: Overrides.
    """

    source: str
    config: str
    checkpoint: Path
    extra: tuple[str, ...] = ()

    def command(self, mode: str, workdir: Path, *extra: str) -> list[str]:
        config = f"--config={ROOT / 'configs' / 'pretrained' / self.config}.py"
        flags = [f"--source={self.source}", f"--checkpoint={self.checkpoint}"] if mode == "import" else []
        return [config, f"--mode={mode}", f"--workdir={workdir}", *flags, *SECONDS, *self.extra, *extra]


def drawn(network):
    """Random weights whose output is tame, so that samples do not grow without bounds."""
    randomize(network)
    network.conv_out.weight.data *= 0.1
    return network


DDPM = {
    "resolution": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "in_channels": 1,
    "out_ch": 1, "dropout": 0.1, "num_diffusion_timesteps": 40, "beta_start": 1e-3, "beta_end": 0.3,
}  # fmt: skip
GUIDED = {
    "image_size": 8, "in_channels": 1, "out_channels": 2, "model_channels": 32, "num_res_blocks": 1,
    "attention_resolutions": [2], "channel_mult": [1, 2], "num_head_channels": 16, "num_classes": 10, "dropout": 0.1,
    "resblock_updown": True, "use_scale_shift_norm": True, "steps": 40, "noise_schedule": "cosine",
}  # fmt: skip
IMPROVED = (
    "--image_size 8 --in_channels 1 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 4 "
    "--learn_sigma True --dropout 0.3 --diffusion_steps 40 --noise_schedule cosine"
)
SCORE_SDE = "--data.image_size 8 --model.name ncsnpp --model.fir {fir} --model.skip_rescale True --training.sde {sde} "
SCORE_SDE += "--training.continuous True --model.dropout 0.1"
NETWORK = {"image_size": 8, "in_channels": 1, "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1}
NETWORK |= {"attention_resolutions": (4,)}


def write_ddpm(folder: Path) -> Foreign:
    network = drawn(plan_ddpm(DDPM).build_backbone())
    torch.save(renamed(network, ddpm_sources(network)), folder / "model.ckpt")
    # found beside the checkpoint
    (folder / "settings_of_ddpm.json").write_text(json.dumps(DDPM))
    return Foreign("ddpm", "ddpm_cifar10", folder / "model.ckpt", ("--config.source.config=settings_of_ddpm.json",))


def write_diffusers(folder: Path) -> Foreign:
    model = NetworkScoreModel(
        drawn(UNet(**NETWORK, norm_groups=8, dropout=0.1)),
        Tabulated.ddpm(num_steps=40, beta_start=1e-3, beta_end=0.3),
        EpsParameterization(),
    )
    export_diffusers(model, folder / "pipeline")
    return Foreign("diffusers", "diffusers_cifar10", folder / "pipeline")


def write_edm(folder: Path) -> Foreign:
    """DDPM++ with classes and labels of augmentation."""
    network = drawn(NCSNpp(**NETWORK, fir_kernel=None, input_pyramid="none", num_classes=10, augment_dim=9))
    tensors = {f"model.{name}": tensor for name, tensor in renamed(network, edm_sources(network)).items()}
    for name in [name for name in tensors if name.endswith(("_down.conv0.weight", "_up.conv0.weight"))]:
        tensors[name.replace("weight", "resample_filter")] = torch.full((1, 1, 2, 2), 0.25)
    torch.save(tensors, folder / "edm.pt")
    return Foreign("edm", "edm_cifar10", folder / "edm.pt")


def write_guided(folder: Path) -> Foreign:
    """Classes, a learned variance, residual resampling."""
    network = drawn(plan_guided(GUIDED).build_backbone())
    torch.save(renamed(network, guided_sources(network)), folder / "guided.pt")
    (folder / "guided.json").write_text(json.dumps(GUIDED))
    extra = (f"--config.source.config={folder / 'guided.json'}",)
    return Foreign("guided_diffusion", "guided_imagenet64", folder / "guided.pt", extra)


def write_improved(folder: Path) -> Foreign:
    network = drawn(plan_guided(IMPROVED, project="improved").build_backbone())
    torch.save(renamed(network, guided_sources(network)), folder / "improved.pt")
    extra = (f"--config.source.config={IMPROVED}",)
    return Foreign("improved_diffusion", "improved_cifar10", folder / "improved.pt", extra)


def _write_score_sde(folder: Path, family: str, network: NCSNpp, *, fir: bool) -> Foreign:
    tensors = renamed(drawn(network), score_sde_sources(network))
    trained = {name: tensor for name, tensor in tensors.items() if not name.endswith(".0.W")}
    checkpoint = {
        "optimizer": {"param_groups": [{"lr": np.float64(2e-4)}]},
        "model": {f"module.{name}": tensor + 1 for name, tensor in trained.items()}
        | {f"module.{name}": tensor for name, tensor in tensors.items() if name not in trained},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": list(trained.values())},
        "step": 7,
    }
    # the order in which the averages stand
    checkpoint["model"] = {f"module.{name}": checkpoint["model"][f"module.{name}"] for name in tensors}
    torch.save(checkpoint, folder / f"{family}.pth")
    flags = SCORE_SDE.format(sde=f"{family}sde", fir=fir)
    return Foreign(
        "score_sde", f"score_sde_{family}_cifar10", folder / f"{family}.pth", (f"--config.source.config={flags}",)
    )


def write_vp(folder: Path) -> Foreign:
    return _write_score_sde(folder, "vp", NCSNpp(**NETWORK, fir_kernel=None, input_pyramid="none"), fir=False)


def write_subvp(folder: Path) -> Foreign:
    return _write_score_sde(folder, "subvp", NCSNpp(**NETWORK), fir=True)


def write_ve(folder: Path) -> Foreign:
    return _write_score_sde(folder, "ve", NCSNpp(**NETWORK, embedding="fourier"), fir=True)


def write_autoencoder(folder: Path, *, scale: float = 1.5) -> Foreign:
    """The autoencoder of a pipeline: no score model, and so none of WRITERS."""
    of_ours = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "latent_channels": 3, "norm_groups": 4}
    network = randomize(Autoencoder(image_size=8, in_channels=1, **of_ours, latent_convs=False, bottleneck="diagonal"))
    settings = {
        "_class_name": "AutoencoderKL", "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16],
        "latent_channels": 3, "norm_num_groups": 4, "scaling_factor": scale, "shift_factor": 0.25, "sample_size": 64,
        "use_quant_conv": False, "use_post_quant_conv": False, "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    }  # fmt: skip
    vae = folder / "pipeline" / "vae"
    vae.mkdir(parents=True)
    tensors = renamed(named_layers(network), autoencoder_sources(network, DIFFUSERS))
    save_file(tensors, vae / "diffusion_pytorch_model.safetensors")
    (vae / "config.json").write_text(json.dumps(settings))
    return Foreign("autoencoder_kl", "sd_vae_cifar10", folder / "pipeline")


def write_latent(folder: Path) -> tuple[Foreign, Foreign]:
    """A pipeline of latents: its autoencoder with a codebook, and its U-Net of 2x4x4 latents times 0.5."""
    of_ours = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "latent_channels": 2, "norm_groups": 4}
    network = randomize(Autoencoder(image_size=8, in_channels=1, **of_ours, bottleneck="vq", codebook_size=20))
    settings = {
        "_class_name": "VQModel", "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16],
        "latent_channels": 2, "norm_num_groups": 4, "num_vq_embeddings": 20, "scaling_factor": 0.5, "sample_size": 64,
        "layers_per_block": 1, "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }  # fmt: skip
    unet = drawn(UNet(image_size=4, in_channels=2, channels=32, channel_mult=(1, 1), attention_resolutions=(2,)))
    pipeline, sde = folder / "pipeline", Tabulated.ddpm(num_steps=40, beta_start=1e-3, beta_end=0.3)
    export_diffusers(NetworkScoreModel(unet, sde, EpsParameterization(time_input="index")), pipeline)
    index = json.loads((pipeline / "model_index.json").read_text())
    index |= {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    (pipeline / "vqvae").mkdir()
    tensors = renamed(named_layers(network), autoencoder_sources(network, DIFFUSERS))
    codebook = {CODEBOOK: network.bottleneck.quantizer.codebook.detach()}
    save_file(tensors | codebook, pipeline / "vqvae" / "diffusion_pytorch_model.safetensors")
    (pipeline / "vqvae" / "config.json").write_text(json.dumps(settings))
    return (
        Foreign("autoencoder_vq", "ldm_celebahq_vq", pipeline),
        Foreign("diffusers", "ldm_celebahq_hub", pipeline),
    )


def write_unet_of_latents(folder: Path) -> Foreign:
    """A pipeline without its autoencoder: a U-Net of the latents of ``write_autoencoder``."""
    unet = drawn(UNet(image_size=4, in_channels=3, channels=32, channel_mult=(1, 1), attention_resolutions=(2,)))
    sde = Tabulated.ddpm(num_steps=40, beta_start=1e-3, beta_end=0.3)
    export_diffusers(NetworkScoreModel(unet, sde, EpsParameterization(time_input="index")), folder)
    return Foreign("diffusers", "ldm_celebahq_hub", folder)


def write_dit(folder: Path, source: str, *, scale: float = 0.18215) -> tuple[Foreign, Foreign]:
    """An autoencoder of 3x4x4 latents, and a file of facebookresearch/DiT, or of willisma/SiT, of these."""
    options = {"image_size": 4, "in_channels": 3, "channels": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    network = randomize(DiT(**options, null_condition=True, learned_variance=True))
    tensors = renamed(network, dit_sources(network)) | {"pos_embed": sincos_positions(2, 2, 16)[None]}
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "published.pt")
    extra = ("--config.source.config=--num_heads 2",)
    return (
        write_autoencoder(folder / "kl", scale=scale),
        Foreign(source, f"{source}_imagenet256", folder / "published.pt", extra),
    )


WRITERS = {
    "ddpm": write_ddpm,
    "diffusers": write_diffusers,
    "edm": write_edm,
    "guided_diffusion": write_guided,
    "improved_diffusion": write_improved,
    "score_sde_vp": write_vp,
    "score_sde_subvp": write_subvp,
    "score_sde_ve": write_ve,
}
