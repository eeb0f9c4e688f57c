"""Every published checkpoint has a config with which its network, of the published size, imports."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from importer_references import count
from thinning import only

from commands.import_checkpoint import check_images
from data import ImageKind, LatentSpace, RealSpace, TextKind, VectorKind
from experiment.build import build_sampler, build_sde
from experiment.config import Config, load_config, parse_options
from experiment.config.checks import check_config, check_eval_names
from experiment.config.imported import config_of_checkpoint
from experiment.network import build_backbone
from models.backbones import DiT, NCSNpp
from models.backbones.blocks.patches import sincos_positions
from models.pretrained import ModelPlan
from models.pretrained.autoencoder_kl.settings import plan_autoencoder_kl
from models.pretrained.autoencoder_vq.settings import plan_vq_model
from models.pretrained.consistency.importer import plan_consistency
from models.pretrained.ddpm import plan_ddpm
from models.pretrained.diffusers.prior import plan_prior
from models.pretrained.diffusers.settings import plan_diffusers
from models.pretrained.dit.diffusers import plan_diffusers_dit
from models.pretrained.dit.importer import dit_sources, plan_dit, plan_sit
from models.pretrained.edm.importer import plan_edm
from models.pretrained.edm.names import edm_sources
from models.pretrained.guided.settings import plan_classifier, plan_guided
from models.pretrained.latent_diffusion.settings import plan_latent_diffusion_unet
from models.pretrained.score_sde.configs import PUBLISHED
from models.pretrained.score_sde.importer import plan_score_sde
from models.pretrained.score_sde.layout import score_sde_sources
from models.pretrained.shared.renaming import renamed
from samplers import GridSampler
from sde_lib import make_grid, make_sde
from training.build import build_loss

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "pretrained"

DDPMPP: dict[str, Any] = {"image_size": 32, "fir_kernel": None, "input_pyramid": "none"}
NCSNPP = {"image_size": 32}
FOURIER = {"embedding": "fourier"}
SKIPS = {**FOURIER, "input_pyramid": "skip", "output_pyramid": "skip"}
SIZE_256 = {"image_size": 256, "channel_mult": (1, 1, 2, 2, 2, 2, 2), "num_res_blocks": 2, **SKIPS}
SIZE_1024 = {"image_size": 1024, "channels": 16, "channel_mult": (1, 2, 4, 8, 16, 32, 32, 32), "num_res_blocks": 1}
SIZE_1024 |= SKIPS
DDPM = {"image_size": 32, "num_res_blocks": 2, "block": "ddpm", "fir_kernel": None, "input_pyramid": "none"}
DDPM |= {"rescale": False, "min_group_channels": 1}

# config.json of pipelines on the hub, as far as they are not UNet2DModel's defaults
HO: dict[str, Any] = {
    "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
    "layers_per_block": 2, "sample_size": 32, "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
HO_256 = HO | {
    "sample_size": 256, "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}  # fmt: skip


def _diffusers_ve(sigma_max: float, **network: Any) -> ModelPlan:
    """NCSN++ of the hub, which attends where its levels are of 16x16 pixels."""
    levels = len(network["block_out_channels"])
    attends = [network["sample_size"] >> i == 16 for i in range(levels)]
    unet = {
        "attention_head_dim": None, "center_input_sample": True, "norm_eps": 1e-6, "norm_num_groups": None,
        "mid_block_scale_factor": 1.41421356237, "time_embedding_type": "fourier", **network,
        "down_block_types": ["AttnSkipDownBlock2D" if one else "SkipDownBlock2D" for one in attends],
        "up_block_types": ["AttnSkipUpBlock2D" if one else "SkipUpBlock2D" for one in reversed(attends)],
    }  # fmt: skip
    return plan_diffusers(unet, {"_class_name": "ScoreSdeVeScheduler", "sigma_max": sigma_max})


# of Stable Diffusion 1 and 2, whose autoencoder stabilityai/sd-vae-ft-mse is too
# as CompVis/ldm-celebahq-256 has them on the hub
LDM_UNET: dict[str, Any] = {
    "attention_head_dim": 32, "block_out_channels": [224, 448, 672, 896], "in_channels": 3, "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3], "flip_sin_to_cos": True, "freq_shift": 0,
    "norm_eps": 1e-05, "out_channels": 3, "sample_size": 64, "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
}  # fmt: skip
LDM_SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195,
}  # fmt: skip
VQ_F4 = {
    "block_out_channels": [128, 256, 512], "down_block_types": ["DownEncoderBlock2D"] * 3, "layers_per_block": 2,
    "num_vq_embeddings": 8192, "sample_size": 256, "up_block_types": ["UpDecoderBlock2D"] * 3,
}  # fmt: skip
SD_VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 2, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SD_15 = {
    "_class_name": "UNet2DConditionModel", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768, "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"], "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}  # fmt: skip
SD_SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
}  # fmt: skip
UNCLIP = {"_class_name": "UnCLIPScheduler", "prediction_type": "sample"}
VE_256 = {"sample_size": 256, "layers_per_block": 2, "block_out_channels": [128, 128, *[256] * 5]}
VE_1024 = {"sample_size": 1024, "layers_per_block": 1, "block_out_channels": [16, 32, 64, 128, 256, 512, 512, 512]}


def _score_sde(config: Config, network: dict[str, Any]) -> ModelPlan:
    with torch.device("meta"):
        tensors = renamed(backbone := NCSNpp(**network), score_sde_sources(backbone))
    return plan_score_sde(tensors, config.source.config, path=Path("published.pth"))


def _dit(config: Config, size: int) -> ModelPlan:
    """DiT-XL/2 of latents of a size, whose tensors SiT's are too."""
    options = {"image_size": size, "in_channels": 4, "channels": 1152, "depth": 28, "num_heads": 16}
    with torch.device("meta"):
        network = DiT(**options, num_classes=1000, null_condition=True, learned_variance=True)
        tensors = renamed(network, dit_sources(network))
    tensors["pos_embed"] = sincos_positions(size // 2, size // 2, 1152)[None]
    plan = {"dit": plan_dit, "sit": plan_sit}[config.source.name]
    return plan(tensors, config.source.config, path=Path("published.pt"))


def _edm(config: Config, network: dict[str, Any], taps: tuple[int, ...]) -> ModelPlan:
    with torch.device("meta"):
        tensors = renamed(backbone := NCSNpp(**network), edm_sources(backbone))
    fir = torch.tensor(taps, dtype=torch.float32) / sum(taps)
    for name in [name for name in tensors if name.endswith(("_down.conv0.weight", "_up.conv0.weight"))]:
        tensors[name.replace("weight", "resample_filter")] = torch.outer(fir, fir)[None, None]
    return plan_edm(tensors, config.source.config, preconditioning=config.source.preconditioning, path=Path("edm.pt"))


def _edm_imagenet(config: Config) -> ModelPlan:
    # of this network the settings say all: any tensor of it tells it from the other kind
    return plan_edm(
        {"out_conv.weight": torch.zeros(1)}, config.source.config, preconditioning="edm", path=Path("edm.pt")
    )


def _vp_edm(**network: Any) -> dict[str, Any]:
    return {"channels": 128, "fir_kernel": None, "input_pyramid": "none", **network}


def _ve_edm(**network: Any) -> dict[str, Any]:
    return {"channels": 128, "embedding": "fourier", **network}


CIFAR10_EDM = {"image_size": 32, "channel_mult": (2, 2, 2), "augment_dim": 9}
FACES_EDM = {"image_size": 64, "channel_mult": (1, 2, 2, 2), "augment_dim": 9}

# (config, further overrides): the plan, and the published number of parameters: exact, or in millions where a paper or
# a file's name rounds it; frequencies that a project counts as parameters included. None where none is published.
# Karras et al. 2022, Appendix F.3 (config C): about 56 million at 32x32, and 62 million at 64x64.
CHECKPOINTS: dict[tuple[str, str], tuple[Any, float | None]] = {
    # Ho et al. 2020, Appendix B
    ("ddpm_cifar10", ""): (lambda c: plan_ddpm(c.source.config), 35_746_307),
    ("ddpm_lsun", ""): (lambda c: plan_ddpm(c.source.config), 114),
    ("ddpm_lsun", "source.config=lsun_cat"): (lambda c: plan_ddpm(c.source.config), 114),
    ("ddpm_lsun", "source.config=lsun_church"): (lambda c: plan_ddpm(c.source.config), 114),
    ("diffusers_cifar10", ""): (lambda c: plan_diffusers(HO, {}), 35_746_307),
    ("diffusers_256", ""): (lambda c: plan_diffusers(HO_256, {}), 114),
    # sigma_max of google/ncsnpp-celebahq-256's scheduler
    ("diffusers_ve_256", ""): (lambda c: _diffusers_ve(380.0, **VE_256), 65_574_549),
    # as diffusers itself counts
    ("diffusers_ve_1024", ""): (lambda c: _diffusers_ve(1348.0, **VE_1024), 105_785_896),
    # EDM's ADM is that of Dhariwal and Nichol 2021, and its baselines are Song et al.'s networks
    ("edm_cifar10", ""): (lambda c: _edm(c, _vp_edm(**CIFAR10_EDM, num_classes=10), (1, 1)), 56),
    ("edm_cifar10", "source.checkpoint=uncond-ve"): (lambda c: _edm(c, _ve_edm(**CIFAR10_EDM), (1, 3, 3, 1)), 56),
    ("edm_cifar10", "source.preconditioning=vp"): (lambda c: _edm(c, DDPMPP, (1, 1)), 61_804_419),
    ("edm_cifar10", "source.preconditioning=ve"): (lambda c: _edm(c, NCSNPP | FOURIER, (1, 3, 3, 1)), None),
    ("edm_ffhq", ""): (lambda c: _edm(c, _vp_edm(**FACES_EDM), (1, 1)), 62),
    ("edm_ffhq", "source.checkpoint=uncond-ve"): (lambda c: _edm(c, _ve_edm(**FACES_EDM), (1, 3, 3, 1)), None),
    ("edm_afhqv2", ""): (lambda c: _edm(c, _vp_edm(**FACES_EDM), (1, 1)), 62),
    ("edm_imagenet64", ""): (_edm_imagenet, 296),
    # Dhariwal and Nichol 2021, Table 11 (Appendix I), and the files themselves
    ("guided_imagenet64", ""): (lambda c: plan_guided(c.source.config), 295_904_454),
    ("guided_imagenet128", ""): (lambda c: plan_guided(c.source.config), 421_529_606),
    ("guided_imagenet256", ""): (lambda c: plan_guided(c.source.config), 553_838_086),
    ("guided_imagenet256_uncond", ""): (lambda c: plan_guided(c.source.config), 552_814_086),
    ("guided_imagenet512", ""): (lambda c: plan_guided(c.source.config), 558_997_638),
    ("guided_imagenet64_classifier", ""): (lambda c: plan_classifier(c.source.config), 65),
    ("guided_imagenet128_classifier", ""): (lambda c: plan_classifier(c.source.config), 43),
    ("guided_imagenet256_classifier", ""): (lambda c: plan_classifier(c.source.config), 54),
    ("guided_imagenet512_classifier", ""): (lambda c: plan_classifier(c.source.config), 54),
    ("guided_lsun", ""): (lambda c: plan_guided(c.source.config), 552_814_086),
    ("guided_lsun_horse_nodropout", ""): (lambda c: plan_guided(c.source.config), 552_814_086),
    # Nichol and Dhariwal 2021: of LSUN Ho et al.'s network, whose last convolution has three outputs more
    ("improved_cifar10", ""): (lambda c: plan_guided(c.source.config, project="improved"), 52_546_438),
    ("improved_imagenet64", ""): (lambda c: plan_guided(c.source.config, project="improved"), None),
    # 270 million in the project's README
    ("improved_imagenet64_cond", ""): (lambda c: plan_guided(c.source.config, project="improved"), 270),
    ("improved_lsun_bedroom", ""): (
        lambda c: plan_guided(c.source.config, project="improved"),
        113_673_219 + 3 * (128 * 9 + 1),
    ),
    # guided-diffusion's network, whose last convolution has three outputs more
    ("consistency_imagenet64", ""): (lambda c: plan_consistency(c.source.config), 295_904_454 - 3 * (9 * 192 + 1)),
    ("consistency_teacher_imagenet64", ""): (lambda c: plan_consistency(c.source.config), 296),
    ("consistency_lsun", ""): (lambda c: plan_consistency(c.source.config), None),
    # Song et al.'s network
    ("rectified_flow_cifar10", ""): (lambda c: _score_sde(c, DDPMPP), 61_804_419),
    ("rectified_flow_cifar10_reflow", ""): (lambda c: _score_sde(c, DDPMPP), 61_804_419),
    # as diffusers itself counts, and the scale of each channel
    ("sd_vae", ""): (lambda c: plan_autoencoder_kl(SD_VAE, image_size=256).plan, 83_653_863 + 3),
    ("sd_vae_cifar10", ""): (lambda c: plan_autoencoder_kl(SD_VAE, image_size=32).plan, 83_653_863 + 3),
    ("stable_diffusion", ""): (lambda c: plan_diffusers(SD_15, SD_SCHEDULER), 859_520_964),
    ("stable_diffusion_vae", ""): (lambda c: plan_autoencoder_kl(SD_VAE, image_size=512).plan, 83_653_863 + 3),
    # less the mean and the standard deviation of embeddings, which diffusers counts
    ("kandinsky_prior", ""): (lambda c: plan_prior({}, UNCLIP), 1_022_030_080 - 2 * 768),
    ("ldm_celebahq", ""): (lambda c: plan_latent_diffusion_unet(c.source.config), 274_056_163),
    ("ldm_celebahq_hub", ""): (lambda c: plan_diffusers(LDM_UNET, LDM_SCHEDULER), 274_056_163),
    ("ldm_celebahq_vq", ""): (lambda c: plan_vq_model(VQ_F4, image_size=256).plan, 55_322_782 + 3),
    # the table of positions is counted there; of SiT's outputs one half is left out
    ("dit_imagenet256", ""): (lambda c: _dit(c, 32), 675_129_632 - 256 * 1152),
    ("dit_imagenet256", "source.name=diffusers_dit"): (lambda c: plan_diffusers_dit({"out_channels": 8}, {}), 675),
    ("dit_imagenet512", ""): (lambda c: _dit(c, 64), 675_129_632 - 256 * 1152),
    ("sit_imagenet256", ""): (lambda c: _dit(c, 32), 675_129_632 - 256 * 1152 - 16 * 1153),
    ("score_sde_ve_1024", ""): (lambda c: _score_sde(c, SIZE_1024), None),
    ("score_sde_ve_1024", "source.config=ve/celebahq_ncsnpp_continuous"): (lambda c: _score_sde(c, SIZE_1024), None),
}


def _of_score_sde() -> None:
    """All names of score_sde_pytorch, by the config that is theirs."""
    for name in PUBLISHED:
        family, rest = name.split("/", 1)
        if not rest.startswith(("cifar10", "ddpm/")):
            if PUBLISHED[name]["data.image_size"] == 256:
                key = ("score_sde_ve_256", f"source.config={name}")
                CHECKPOINTS[key] = (lambda c: _score_sde(c, SIZE_256), 65_574_549)
            continue
        config = f"score_sde_{family}_cifar10"
        if family == "vp" and "continuous" not in name:
            config += "_discrete"
        network = DDPM if "ddpm/" in name or "_ddpm_" in name else DDPMPP if "ddpmpp" in name else NCSNPP
        deep = {"num_res_blocks": 8} if "deep" in name else {}
        fourier = FOURIER if family == "ve" and "continuous" in name else {}
        size = 35_218_947 if network is DDPM else 61_804_419 if network is DDPMPP and not deep else None
        settings = {**network, **deep, **fourier}
        CHECKPOINTS[config, f"source.config={name}"] = (lambda c, settings=settings: _score_sde(c, settings), size)


_of_score_sde()
NAMES = [f"{config} {override}".strip() for config, override in CHECKPOINTS]


def _load(name: str, override: str = "") -> Config:
    return load_config(str(FOLDER / f"{name}.py"), [f"--config.{override}"] if override else [])


def test_every_config_is_of_a_checkpoint_here():
    there = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "family"}
    assert there == {config for config, _ in CHECKPOINTS}


def test_every_command_of_the_page_has_its_config():
    lines = (ROOT / "docs" / "pretrained.md").read_text().splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("$IMPORT ")]
    found: set[str] = set()
    for (flag, path, also, checkpoint), overrides in ((command[:4], command[4:]) for command in commands):
        assert (flag, also) == ("--config", "--checkpoint") and checkpoint
        config = load_config(str(ROOT / path), overrides)
        if config.source.name == "score_sde":
            # the folder that the checkpoint is in, but for three that the project names otherwise than their config
            folder = checkpoint.rsplit("/", 1)[0].replace("vp/cifar10_ddpm_", "vp/ddpm/cifar10_")
            folder = folder.replace("subvp/ddpm/cifar10_", "subvp/cifar10_ddpm_").replace("ffhq_1024", "ffhq")
            assert config.source.config == ("vp/ddpm/cifar10" if folder == "vp/cifar10_ddpm" else folder)
        found.add(Path(path).stem)
    assert found == {config for config, _ in CHECKPOINTS}


# one of each importer and backbone
FAST = ("ddpm_cifar10", "diffusers_cifar10", "diffusers_ve_256", "edm_cifar10", "guided_imagenet64", "improved_cifar10")
FAST += ("guided_imagenet64_classifier", "sd_vae_cifar10", "ldm_celebahq", "ldm_celebahq_vq", "kandinsky_prior")
FAST += (
    "consistency_imagenet64",
    "dit_imagenet256",
    "sit_imagenet256",
    "rectified_flow_cifar10",
    "score_sde_vp_cifar10",
    "score_sde_ve_256",
    "score_sde_ve_1024",
)


@pytest.mark.parametrize("key", only([(name, "") for name in FAST], CHECKPOINTS), ids=NAMES)
def test_the_published_network_fits_its_config_and_has_the_published_size(key: tuple[str, str]):
    config = _load(*key)
    plan, published = CHECKPOINTS[key][0](config), CHECKPOINTS[key][1]
    with torch.device("meta"):
        backbone = plan.build_backbone()
    size = count(plan.build_backbone)
    fourier = getattr(getattr(backbone, "embed", None), "fourier", None)
    # these projects' frequencies are parameters
    if fourier is not None and "edm" not in key[0]:
        size += fourier.frequencies.numel()
    if published is not None:
        # whole tens of millions are rounded to tens
        digits = -1 if published % 10 == 0 else None
        assert (size if published > 1000 else round(size / 1e6, digits)) == published

    whole = config_of_checkpoint(config, plan, "published.pt")
    check_config(whole)
    check_eval_names(whole)
    if whole.data.first_stage:
        # which is imported by a config of its own, at its size
        of_autoencoder = _load(Path(whole.data.first_stage).name)
        assert of_autoencoder.data.image_size == whole.data.image_size
        shape = (plan.network["in_channels"], plan.network["image_size"], plan.network["image_size"])
        space = LatentSpace(shape, (0.0,) * shape[0], (1.0,) * shape[0], 256, "")
        text = TextKind((), "clip", 768, 0) if whole.data.get("condition") else None
        shape, classes = (3, whole.data.image_size, whole.data.image_size), plan.network.get("num_classes") or 1
        images = ImageKind(shape, 256, classes, latents=space, text=text)
    elif plan.backbone == "prior_transformer":
        images = VectorKind((768,), RealSpace((0.0,) * 768, (1.0,) * 768), text=TextKind((), "clip", 768, 768))
    else:
        images = check_images(whole, plan.network, "published.pt")
    with torch.device("meta"):
        again = build_backbone(whole, images, outputs_per_channel=1)
    assert type(again) is type(backbone)
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (again, backbone)]
    assert shapes[0] == shapes[1]
    assert whole.model.get("dropout", 0.0) == plan.network.get("dropout", 0.0)
    assert whole.model.learned_variance == plan.network.get("learned_variance", False)
    assert whole.model.class_conditional == (plan.network.get("num_classes") is not None)

    sde = build_sde(whole)
    build_loss(whole, sde, images)
    sampler = build_sampler(whole)
    assert isinstance(sampler, GridSampler)
    assert len(make_grid(whole.sampling.grid, sde, whole.sampling.num_steps)) == whole.sampling.num_steps + 1


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("ddpm_cifar10", ("ancestral", 1000, "uniform", True)),
        ("guided_imagenet256", ("ancestral", 250, "uniform", True)),
        # "the best samples result from using 1000 timesteps": guided-diffusion's README
        ("guided_lsun", ("ancestral", 1000, "uniform", True)),
        ("guided_lsun_horse_nodropout", ("ancestral", 1000, "uniform", True)),
        # 18 steps of theirs, 35 calls: 17 here and the final denoising
        ("kandinsky_prior", ("ancestral", 25, "trailing", True)),
        ("ldm_celebahq", ("ddim", 200, "uniform", True)),
        ("dit_imagenet256", ("ancestral", 250, "uniform", True)),
        ("dit_imagenet512", ("ancestral", 250, "uniform", True)),
        ("sit_imagenet256", ("probability_flow", 250, "uniform", True)),
        ("edm_cifar10", ("heun", 17, "karras", False)),
        ("edm_ffhq", ("heun", 39, "karras", False)),
        ("edm_imagenet64", ("heun", 255, "karras", False)),
        ("consistency_imagenet64", ("consistency", 1, "karras", True)),
        ("score_sde_vp_cifar10", ("euler_maruyama", 1000, "uniform", False)),
        ("score_sde_ve_cifar10", ("predictor_corrector", 1000, "uniform", False)),
    ],
)
def test_samplers_are_the_published_ones(name: str, sampling: tuple[str, int, str, bool]):
    said = _load(name).sampling
    assert (said.sampler, said.num_steps, said.grid, said.clip_x0) == sampling


PREDICTOR_CORRECTOR = "predictor=reverse_diffusion, corrector=langevin, snr="
# what neither tensors nor numbers of parameters show: dropout, the SDE, and the sampler's options
PUBLISHED_VALUES: dict[str, tuple[float, str, str]] = {
    "consistency_imagenet64": (0.0, "ve", ""),
    "consistency_lsun": (0.0, "ve", ""),
    "consistency_teacher_imagenet64": (0.1, "ve", ""),
    "ddpm_cifar10": (0.1, "ddpm", "variance=large"),
    "ddpm_lsun": (0.0, "ddpm", "variance=small"),
    "diffusers_cifar10": (0.0, "ddpm", "variance=large"),
    "dit_imagenet256": (0.0, "ddpm", ""),
    "dit_imagenet512": (0.0, "ddpm", ""),
    "sit_imagenet256": (0.0, "rectified_flow", "solver=dopri5, rtol=1e-3, atol=1e-6"),
    "diffusers_256": (0.0, "ddpm", "variance=small"),
    "diffusers_ve_256": (0.0, "ve", f"{PREDICTOR_CORRECTOR}0.075"),
    "diffusers_ve_1024": (0.0, "ve", f"{PREDICTOR_CORRECTOR}0.15"),
    "edm_cifar10": (0.13, "ve", ""),
    "edm_ffhq": (0.05, "ve", ""),
    "edm_afhqv2": (0.25, "ve", ""),
    "edm_imagenet64": (0.1, "ve", "churn=39.84375, churn_min=0.05, churn_max=50, noise_std=1.003"),
    "guided_imagenet64": (0.1, "improved_ddpm", ""),
    "guided_imagenet128": (0.0, "ddpm", ""),
    "guided_imagenet256": (0.0, "ddpm", ""),
    "guided_imagenet256_uncond": (0.0, "ddpm", ""),
    "guided_imagenet512": (0.0, "ddpm", ""),
    "guided_imagenet64_classifier": (0.0, "improved_ddpm", ""),
    "guided_imagenet128_classifier": (0.0, "ddpm", ""),
    "guided_imagenet256_classifier": (0.0, "ddpm", ""),
    "guided_imagenet512_classifier": (0.0, "ddpm", ""),
    "guided_lsun": (0.1, "ddpm", ""),
    "guided_lsun_horse_nodropout": (0.0, "ddpm", ""),
    "improved_cifar10": (0.3, "improved_ddpm", ""),
    "improved_imagenet64": (0.0, "improved_ddpm", ""),
    "improved_imagenet64_cond": (0.0, "improved_ddpm", ""),
    "improved_lsun_bedroom": (0.0, "ddpm", ""),
    "kandinsky_prior": (0.0, "improved_ddpm", "variance=small"),
    "ldm_celebahq": (0.0, "betas", ""),
    "ldm_celebahq_hub": (0.0, "betas", ""),
    "ldm_celebahq_vq": (0.0, "ddpm", ""),
    "stable_diffusion": (0.0, "betas", ""),
    "stable_diffusion_vae": (0.0, "ddpm", ""),
    "sd_vae": (0.0, "ddpm", ""),
    "sd_vae_cifar10": (0.0, "ddpm", ""),
    "rectified_flow_cifar10": (0.15, "rectified_flow", "solver=dopri5"),
    "rectified_flow_cifar10_reflow": (0.1, "rectified_flow", ""),
    "score_sde_vp_cifar10": (0.1, "vp", ""),
    "score_sde_vp_cifar10_discrete": (0.1, "ddpm", "variance=large"),
    "score_sde_subvp_cifar10": (0.1, "subvp", ""),
    "score_sde_ve_cifar10": (0.1, "ve", f"{PREDICTOR_CORRECTOR}0.16"),
    "score_sde_ve_256": (0.0, "ve", f"{PREDICTOR_CORRECTOR}0.075"),
    "score_sde_ve_1024": (0.0, "ve", f"{PREDICTOR_CORRECTOR}0.15"),
}


@pytest.mark.parametrize("name", sorted({config for config, _ in CHECKPOINTS}))
def test_what_no_tensor_shows_is_as_published(name: str):
    config = _load(name)
    overrides = ("", f"source.config={config.source.config}")
    build = next(CHECKPOINTS[name, override][0] for override in overrides if (name, override) in CHECKPOINTS)
    plan = build(config)
    found = plan.network.get("dropout", 0.0), plan.sde["name"], config.sampling.options
    assert found == PUBLISHED_VALUES[name]
    # the only one of guided-diffusion whose queries, keys and values lie in the new order
    assert ("--use_new_attention_order True" in config.source.config) == (name == "guided_imagenet64")


@pytest.mark.parametrize(("name", "num_steps"), [("edm_cifar10", 18), ("edm_ffhq", 40), ("edm_imagenet64", 256)])
def test_edm_s_noise_levels_are_those_of_its_sampler(name: str, num_steps: int):
    """sigma_i of Karras et al. 2022, Eq. 5; after the last they step to 0, which is the final denoising here."""
    sampling, sde = _load(name).sampling, make_sde("ve", sigma_min=0.002, sigma_max=80.0)
    ramp = torch.arange(num_steps, dtype=torch.float64) / (num_steps - 1)
    expected = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    found = sde.sigma(make_grid(sampling.grid, sde, sampling.num_steps))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    churn = parse_options(sampling.options).get("churn", 0)
    # what their sampler adds at each step: S_churn over its number of steps
    assert churn / sampling.num_steps == pytest.approx((40 if name == "edm_imagenet64" else 0) / num_steps)
